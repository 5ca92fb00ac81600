"""Moves outliers of activations into weights before both are rounded, without a change of what is computed.

    norm(x) / t  then  (t W)           t = sqrt(max |input channel| / max |weight of that channel|)

A few channels of the residual stream are tens of times as large as the others; rounded with one scale per row
they leave little for the rest. The factors divide the gain in front of q, k, v and of the feed-forward
(router included), and, where the feed-forward is gated, the channels of `up` in front of `down`. The largest
activations are those of one sequence of random tokens: the outlying channels are the same for any text, so
that none is needed.

Source: SmoothQuant (arXiv 2211.10438), equation 4 with alpha = 1/2.

Axes: B = 1 row, T tokens, D model width.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import FullSequence
from mixattn.cache.protocol import KV
from mixattn.hf.tensors import ParamPath, dotted_path
from mixattn.layers import FeedForward, activate
from mixattn.model import Block, normed
from mixattn.rope import rope_tables
from mixattn.spec import Layer, ModelConfig

TOKENS = 128
SPREAD = 32  # no factor is further from the median than this

type Params = dict[ParamPath, Any]
type Tops = dict[str, jax.Array]


class SmoothedParams:
    """Reads parameters of a float model, smoothed; a block at a time, from the first to the last.

    Args:
      config: of the float model.
      read: its parameters by path.
    """

    def __init__(self, config: ModelConfig, read: Callable[[ParamPath], Any]):
        self._config, self._read = config, read
        self._number = -1
        self._block: Params = {}
        self._kv: dict[int, KV] = {}
        self._x: jax.Array | None = None

    def __call__(self, path: ParamPath) -> Any:
        """The parameter; blocks may not be asked for in falling order.

        Raises:
          ValueError: an earlier block than the last one.
        """
        if not path.startswith("blocks."):
            return self._read(path)
        _, number, rest = path.split(".", 2)
        if int(number) < self._number:
            raise ValueError(f"block {number} is asked for after block {self._number}")
        while self._number < int(number):
            self._advance()
        return self._block[rest]

    def _advance(self) -> None:
        """Runs the next block over the sequence and smooths its parameters."""
        self._number += 1
        layer = self._config.layers[self._number]
        acc = "float64" if self._config.dtype == "float64" else "float32"
        if self._x is None:
            self._x = self._embedded(acc)
        abstract = nnx.eval_shape(lambda: Block(self._config, layer, nnx.Rngs(0)))
        graphdef, shapes = nnx.split(abstract)
        flat = nnx.to_flat_state(shapes)
        params = {
            dotted_path(p): jnp.asarray(self._read(f"blocks.{self._number}.{dotted_path(p)}"), acc)
            for p, _ in flat
        }
        filled = nnx.from_flat_state([(p, v.replace(params[dotted_path(p)])) for p, v in flat])
        # Blocks that are alike share one program: their own keys and values are number 0, others number -1.
        alike = Layer(0, 0 if layer.owns else -1, layer.window)
        given = None if layer.owns else self._kv[layer.owner]
        self._x, kv, tops = _run(graphdef, self._config, alike, filled, self._x, given)
        if layer.owns:
            self._kv[layer.index] = kv
        self._block = smoothed(self._config, params, tops)

    def _embedded(self, dtype: str) -> jax.Array:
        config = self._config
        length = min(TOKENS, config.max_positions)
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
        x_BTD = jnp.asarray(self._read("embed.table")[ids], dtype) * config.embedding_scale
        if config.positions == "learned":
            rows = np.arange(length) + config.position_offset
            x_BTD += jnp.asarray(self._read("embed.positions")[rows], dtype)[None]
        return x_BTD


@functools.partial(jax.jit, static_argnames=("graphdef", "config", "layer"))
def _run(
    graphdef: nnx.GraphDef[Block],
    config: ModelConfig,
    layer: Layer,
    params: nnx.State,
    x_BTD: jax.Array,
    given: KV | None,
) -> tuple[jax.Array, KV, Tops]:
    """The residual stream after the block, the K/V it read, and the largest inputs by channel."""
    block, T = nnx.merge(graphdef, params), x_BTD.shape[1]
    kv = FullSequence({} if given is None else {-1: given})
    rope = rope_tables(config, jnp.arange(T)[None], config.rope_length or T)[layer.slides]
    if given is None:
        kv = kv.write(layer, *block.keys_values(x_BTD, rope))
    tops = {"attention": _top(normed(block.attention_norm, x_BTD))}

    def read_kv(q_BTNH: jax.Array) -> jax.Array:
        scale, softcap = config.attention_scale or None, config.attention_softcap or None
        return kv.attend(layer, q_BTNH, scale=scale, softcap=softcap)[0]

    x_BTD = block.attend(x_BTD, rope, read_kv)
    inner_BTD = normed(block.ffn_norm, x_BTD)
    tops["ffn"] = _top(inner_BTD)
    if isinstance(block.ffn, FeedForward) and config.gated:
        gate, up = block.ffn.expanded(inner_BTD)
        assert gate is not None
        tops["hidden"] = _top(activate(gate, config.activation) * up)
    return block.feed_forward(x_BTD)[0], kv.kv[layer.owner], tops


def _top(x_BTD: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x_BTD), axis=(0, 1))


def smoothed(config: ModelConfig, params: Params, tops: Mapping[str, jax.Array]) -> Params:
    """A block's parameters, so that the block computes the same from smaller outliers."""
    after = dict(params)
    _behind_norm(
        config, after, "attention_norm", tops["attention"], ["attention.q", "attention.k", "attention.v"]
    )
    _behind_norm(config, after, "ffn_norm", tops["ffn"], ["ffn.gate", "ffn.up", "ffn.router"])
    if "hidden" in tops:
        t = factors(tops["hidden"], [after["ffn.down.kernel"]])
        after["ffn.down.kernel"] *= t[:, None]
        after["ffn.up.kernel"] /= t[None]
        if "ffn.up.bias" in after:
            after["ffn.up.bias"] /= t
    return after


def _behind_norm(
    config: ModelConfig, params: Params, norm: str, top: jax.Array, maps: list[ParamPath]
) -> None:
    """Divides the norm's output by the factors and multiplies the maps behind it, in place."""
    if f"{norm}.gain" not in params:
        return
    names = [name for stem in maps for name in (f"{stem}.kernel", stem) if name in params]
    t = factors(top, [params[name] for name in names if not name.endswith("router")])
    for name in names:
        params[name] *= t[(None,) * (params[name].ndim - 2) + (slice(None), None)]
    gain = params[f"{norm}.gain"]
    params[f"{norm}.gain"] = (1 + gain) / t - 1 if config.norm_unit_offset else gain / t
    if f"{norm}.bias" in params:
        params[f"{norm}.bias"] /= t


def factors(top_D: jax.Array, weights: list[jax.Array]) -> jax.Array:
    """t_D; weights are [D, F] or [E, D, F]."""
    heaviest_D = functools.reduce(
        jnp.maximum,
        [jnp.max(jnp.abs(w), axis=tuple(i for i in range(w.ndim) if i != w.ndim - 2)) for w in weights],
    )
    seen_D = (top_D > 0) & (heaviest_D > 0)
    t_D = jnp.where(seen_D, jnp.sqrt(jnp.where(seen_D, top_D, 1) / jnp.where(seen_D, heaviest_D, 1)), 1)
    middle = jnp.median(t_D)
    return jnp.clip(t_D, middle / SPREAD, middle * SPREAD)
