"""The residual stream of a model before and inside every block, stored on disk for fitting others to it.

Axes: R rows, T tokens, L layers, D model width.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mixattn import Transformer
from mixattn.cache import Cache, FullSequence
from mixattn.model import run_blocks
from mixattn.tools import files

ROWS_AT_ONCE = 4


class Streams(NamedTuple):
    """What a model computes on some rows.

    Attributes:
      inputs: before each block, and after the last: [L + 1, R, T, D].
      middles: after each block's attention half: [L, R, T, D].
    """

    inputs: jax.Array
    middles: jax.Array


def streams(model: Transformer, tokens_RT: jax.Array) -> Streams:
    """The residual streams of a teacher-forced forward pass."""
    config, T = model.config, tokens_RT.shape[1]
    kv: Cache = FullSequence({})
    x_RTD = model.embed(tokens_RT, kv.positions(T))
    inputs, middles = [x_RTD], []
    for block, layer in zip(model.blocks, config.layers):
        tap: list[jax.Array] = []
        x_RTD, kv, _ = run_blocks(config, [_Tapped(block, tap)], [layer], x_RTD, kv)  # type: ignore[list-item]
        inputs.append(x_RTD)
        middles += tap
    return Streams(jnp.stack(inputs), jnp.stack(middles))


class StoredStreams:
    """Streams in a file, read a layer at a time as float32; stored in bfloat16.

    Attributes:
      rows, tokens, layers: what they are of.
    """

    def __init__(self, path: Path):
        self._data: np.ndarray = np.load(path, mmap_mode="r")  # [2 L + 1, R, T, D]: inputs, then middles
        streams, self.rows, self.tokens, _ = map(int, self._data.shape)
        self.layers = (streams - 1) // 2

    def input(self, layer: int, row: int | None = None) -> jax.Array:
        """[R, T, D] before the layer (n_layers = after the last); of one row [1, T, D]."""
        return self._read(layer, row)

    def middle(self, layer: int) -> jax.Array:
        """[R, T, D] after the layer's attention half."""
        return self._read(self.layers + 1 + layer, None)

    def _read(self, index: int, row: int | None) -> jax.Array:
        part = self._data[index] if row is None else self._data[index, row : row + 1]
        return jnp.asarray(np.ascontiguousarray(part).view(np.dtype(jnp.bfloat16)).astype(np.float32))


def store(path: Path, model: Transformer, tokens_RT: np.ndarray) -> StoredStreams:
    """Computes the streams of these rows into a file, unless it is there; the file is whole or absent."""
    if not path.exists():
        with files.whole(path) as temporary:
            _compute(temporary, model, tokens_RT)
    return StoredStreams(path)


def _compute(path: Path, model: Transformer, tokens_RT: np.ndarray) -> None:
    R, T = tokens_RT.shape
    shape = (2 * model.config.n_layers + 1, R, T, model.config.d_model)
    out = np.lib.format.open_memmap(path, "w+", np.uint16, shape)
    run: Any = jax.jit(lambda model, tokens: jnp.concatenate(streams(model, tokens)).astype(jnp.bfloat16))
    for start in range(0, R, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        out[:, rows] = np.asarray(run(model, jnp.asarray(tokens_RT[rows]))).view(np.uint16)
    out.flush()


class _Tapped:
    """A block that also notes the stream between its halves."""

    def __init__(self, block: Any, tap: list[jax.Array]):
        self._block, self._tap = block, tap
        self.keys_values = block.keys_values

    def attend(self, *args: Any) -> jax.Array:
        self._tap.append(self._block.attend(*args))
        return self._tap[-1]

    def feed_forward(self, *args: Any) -> Any:
        return self._block.feed_forward(*args)
