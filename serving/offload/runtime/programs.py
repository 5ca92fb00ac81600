"""A layer in pieces: one compiled program per piece and kind of layer, with experts as arguments.

    project   q, k, v of the residual stream            attend    K/V written, queries answered
    route     the rest before the experts               expert    one expert's rows of a micro-batch
    combine   the experts' outputs into the stream      dense     the rest of a layer without experts
    guess     the experts that a later layer may ask for

Layers that are alike share programs, so a deep stack compiles no longer than a shallow one. An expert's
matrices are three separate arguments, as they lie in page buffers and in the checkpoint's orientation: no
stack of experts is built. An expert's rows are computed in the blocks of `pallas_kernels.grouped`, whatever
else runs in the same pass: so results do not depend on how experts arrive.

Axes: R rows, T tokens of each, X = R T, D model width, E experts, k experts of a token, M = X k rows sorted
by expert, b rows of a block.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mixattn.cache import Paged, PageKind
from mixattn.cache.protocol import step_positions
from mixattn.layers import activate
from mixattn.model import Block, Transformer
from mixattn.moe import MoE
from mixattn.rope import rope_tables
from mixattn.spec import Layer, ModelConfig
from pallas_kernels import int8
from pallas_kernels.grouped.xla import BLOCKS
from pallas_kernels.paged import Pool

type OptionalArray = jax.Array | None


class LayerKind(NamedTuple):
    """What a layer's programs depend on beside shapes; hashable.

    Attributes:
      layer: how it attends; its index is 0, and its owner 0 or -1.
      mixture: whether its feed-forward is a mixture of experts.
    """

    graphdef: nnx.GraphDef[Block]
    tree: Any
    layer: Layer
    mixture: bool

    def describe(self) -> str:
        """The same from run to run, unlike a hash."""
        return repr((self.layer, self.mixture))

    def block(self, params: Sequence[jax.Array]) -> Block:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.tree, params))


class OffloadLayer(NamedTuple):
    """A layer without its experts.

    Attributes:
      number: of its kind; names its programs.
      owner: the layer whose K/V it reads.
    """

    kind: LayerKind
    params: Sequence[jax.Array]
    number: int
    owner: int


class Routed(NamedTuple):
    """Where the rows of a micro-batch go.

    Attributes:
      x_MD: normalized rows sorted by expert, and b rows of padding; y_MD: zeros of the same shape.
      first_E, size_E: each expert's rows.
      back_M: the place of each token's choice in the sorted rows. gate_Xk: its weight.
    """

    x_MD: jax.Array
    y_MD: jax.Array
    first_E: jax.Array
    size_E: jax.Array
    back_M: jax.Array
    gate_Xk: jax.Array


def without_experts(model: Transformer) -> Transformer:
    """Drops the expert matrices of a model that was loaded without them, in place."""
    for block in model.blocks:
        if isinstance(block.ffn, MoE):
            block.ffn.gate = block.ffn.up = block.ffn.down = None  # type: ignore[assignment]
    return model


def layers_of(model: Transformer) -> list[OffloadLayer]:
    """The model's layers; those of one kind share a number."""
    numbers: dict[LayerKind, int] = {}
    found = []
    for index, block in enumerate(model.blocks):
        layer = model.config.layers[index]
        graphdef, state = nnx.split(block)
        params, tree = jax.tree.flatten(state)
        alike = Layer(0, 0 if layer.owns else -1, layer.window)
        kind = LayerKind(graphdef, tree, alike, isinstance(block.ffn, MoE))
        number = numbers.setdefault(kind, len(numbers))
        found.append(OffloadLayer(kind, params, number, layer.owner))
    return found


def block_rows(rows: int, experts: int) -> int:
    """Rows of a block, as the resident grouped matmul chooses them."""
    b = BLOCKS[0]
    while b < BLOCKS[1] and b * experts < rows:
        b *= 2
    return b


@functools.partial(jax.jit, static_argnames=("config", "kind"))
def project(
    config: ModelConfig, kind: LayerKind, params: Sequence[jax.Array], x_RTD: jax.Array, start_R: Any
) -> tuple[jax.Array, OptionalArray, OptionalArray]:
    """q_RTNH, and of an owner k_RTKH and v_RTKH."""
    block = kind.block(params)
    positions = step_positions(jnp.asarray(start_R), x_RTD.shape[1])
    rope = rope_tables(config, positions, config.rope_length)[kind.layer.slides]
    keys, values = block.keys_values(x_RTD, rope) if kind.layer.owns else (None, None)
    return block.queries(x_RTD, rope), keys, values


def _attend(
    config: ModelConfig,
    kind: LayerKind,
    page_kinds: tuple[PageKind, ...],
    pool: Pool,
    q_RTNH: jax.Array,
    k_RTKH: OptionalArray,
    v_RTKH: OptionalArray,
    tables: Mapping[str, Any],
    start_R: Any,
    count_R: Any,
) -> tuple[jax.Array, Pool | None]:
    layer = kind.layer
    kv = Paged({layer.owner: pool}, dict(tables), jnp.asarray(start_R), jnp.asarray(count_R), page_kinds)
    if k_RTKH is not None and v_RTKH is not None:
        kv = kv.write(layer, k_RTKH, v_RTKH)
    scale, softcap = config.attention_scale or None, config.attention_softcap or None
    out_RTNH, kv = kv.attend(layer, q_RTNH, scale=scale, softcap=softcap)
    return out_RTNH, kv.pools[layer.owner] if layer.owns else None


_STATIC = ("config", "kind", "page_kinds")
attend_owner = jax.jit(_attend, static_argnames=_STATIC, donate_argnames="pool")
attend_reader = jax.jit(_attend, static_argnames=_STATIC)


@functools.partial(jax.jit, static_argnames=("config", "kind"), donate_argnames="x_RTD")
def dense(
    config: ModelConfig, kind: LayerKind, params: Sequence[jax.Array], x_RTD: jax.Array, out_RTNH: jax.Array
) -> jax.Array:
    """The residual stream after a layer without experts."""
    block = kind.block(params)
    return block.feed_forward(block.attended(x_RTD, out_RTNH))[0]


@functools.partial(jax.jit, static_argnames=("config", "kind"), donate_argnames="x_RTD")
def route(
    config: ModelConfig,
    kind: LayerKind,
    params: Sequence[jax.Array],
    x_RTD: jax.Array,
    out_RTNH: jax.Array,
    count_R: Any,
) -> tuple[jax.Array, Routed]:
    """The stream after the attention half, and its normalized rows sorted by expert; padding goes nowhere."""
    block = kind.block(params)
    x_RTD = block.attended(x_RTD, out_RTNH)
    (R, T, D), E, k = x_RTD.shape, config.n_experts, config.experts_per_token
    h_RTD = x_RTD if block.ffn_norm is None else block.ffn_norm(x_RTD)
    h_XD = h_RTD.reshape(-1, D)
    assert isinstance(block.ffn, MoE)
    chosen = block.ffn.route(h_XD)
    real_X = (jnp.arange(T)[None] < jnp.asarray(count_R)[:, None]).reshape(-1)
    expert_M = jnp.where(real_X[:, None], chosen.expert_Xk, E).reshape(-1)
    order_M = jnp.argsort(expert_M, stable=True)
    size_E = jnp.bincount(expert_M, length=E + 1)[:E].astype(jnp.int32)
    padding = ((0, block_rows(R * T * k, E)), (0, 0))
    x_MD = jnp.pad(h_XD[order_M // k], padding)
    return x_RTD, Routed(
        x_MD,
        jnp.zeros_like(x_MD),
        jnp.cumsum(size_E, dtype=jnp.int32) - size_E,
        size_E,
        jnp.argsort(order_M),
        chosen.gate_Xk,
    )


@functools.partial(jax.jit, static_argnames=("config", "kind"))
def guess(
    config: ModelConfig, kind: LayerKind, params: Sequence[jax.Array], x_RTD: jax.Array, count_R: Any
) -> jax.Array:
    """chosen_E: the experts that this layer would ask for if it stood where the stream is now."""
    block = kind.block(params)
    h_RTD = x_RTD if block.ffn_norm is None else block.ffn_norm(x_RTD)
    assert isinstance(block.ffn, MoE)
    chosen_Xk = block.ffn.route(h_RTD.reshape(-1, x_RTD.shape[-1])).expert_Xk
    real_X = (jnp.arange(x_RTD.shape[1])[None] < jnp.asarray(count_R)[:, None]).reshape(-1)
    E = config.n_experts
    return jnp.zeros(E + 1, bool).at[jnp.where(real_X[:, None], chosen_Xk, E)].set(True)[:E]


@functools.partial(jax.jit, static_argnames=("config", "transposed", "b"), donate_argnames="y_MD")
def expert(
    config: ModelConfig,
    transposed: bool,
    b: int,
    y_MD: jax.Array,
    x_MD: jax.Array,
    first: Any,
    size: Any,
    matrices: Sequence[jax.Array],
) -> jax.Array:
    """y_MD with one expert's rows filled in, from row `first` on.

    Args:
      transposed: the matrices are stored as [out, in].
      matrices: gate (if gated), up, down; each as int8 codes [out, in] and scales, if it was rounded.
    """
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    weights: Sequence[jax.Array | int8.Codes] = matrices
    if matrices[0].dtype == jnp.int8:
        weights = [int8.Codes(*pair) for pair in zip(matrices[::2], matrices[1::2])]

    def times(x_bD: jax.Array, w: jax.Array | int8.Codes) -> jax.Array:
        if isinstance(w, int8.Codes):
            return int8.matmul(int8.quantize(x_bD), w, x_bD.dtype)
        return lax.dot_general(x_bD, w, contract)

    def one_block(i: jax.Array, y_MD: jax.Array) -> jax.Array:
        row = first + i * b
        x_bD = lax.dynamic_slice_in_dim(x_MD, row, b)
        *gate, up, down = weights
        up_bF = times(x_bD, up)
        h_bF = activate(times(x_bD, gate[0]), config.activation) * up_bF if gate else None
        y_bD = times(activate(up_bF, config.activation) if h_bF is None else h_bF, down)
        mine_b1 = (row + jnp.arange(b) < first + size)[:, None]
        kept_bD = jnp.where(mine_b1, y_bD, lax.dynamic_slice_in_dim(y_MD, row, b))
        return lax.dynamic_update_slice_in_dim(y_MD, kept_bD, row, 0)

    return lax.fori_loop(0, -(-size // b), one_block, y_MD)


@functools.partial(jax.jit, static_argnames=("config", "kind"), donate_argnames="x_RTD")
def combine(
    config: ModelConfig,
    kind: LayerKind,
    params: Sequence[jax.Array],
    x_RTD: jax.Array,
    y_MD: jax.Array,
    back_M: jax.Array,
    gate_Xk: jax.Array,
) -> jax.Array:
    """The residual stream after the experts."""
    block = kind.block(params)
    y_XkD = y_MD[back_M].reshape(*gate_Xk.shape, -1)
    y_XD = jnp.sum(y_XkD * gate_Xk[..., None].astype(y_MD.dtype), axis=1)
    y_RTD = y_XD.reshape(x_RTD.shape)
    return x_RTD + (y_RTD if block.ffn_post_norm is None else block.ffn_post_norm(y_RTD))
