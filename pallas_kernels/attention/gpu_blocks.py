"""Parts that the Hopper kernels share: tiles of 64 rows by 64 keys, their products and their masks.

Rows are queries x G of one key/value head, padded to 64 per block; keys come in blocks of 64. A kernel loops
over a range of blocks while the copies of the next ones are in flight (`pipelined_loop`). Where positions
are not the plain ones, each block comes with its metadata: position and segment of every row or key.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from pallas_kernels.attention import operands, xla_streamed
from pallas_kernels.attention.operands import ScoreTransform, StaticOptions, TokenPositions
from pallas_kernels.masks import visible
from pallas_kernels.typing import Ref

ROWS, KEYS, STAGES = 64, 64, 4
LOWEST = -1e30  # below every score, but finite: exp(LOWEST - LOWEST) is 1, not NaN
LOG2E = math.log2(math.e)
TILED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

# Output [ROWS, H], maximum score [ROWS] and sum of weights [ROWS] of one warpgroup's rows.
type Carry = tuple[jax.Array, jax.Array, jax.Array]


def unsupported_shape(dtype: DTypeLike, H: int, G: int) -> str | None:
    """The reason why the Hopper kernels do not support these operands, or None."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"wgmma multiplies 16-bit floats, not {dtype}"
    if H not in (64, 128):
        return f"head size {H} is neither 64 nor 128, which fit shared memory in {STAGES} stages"
    if G > ROWS:
        return f"{G} query heads share a key/value head; {ROWS} fit"
    return None


class FoldedBlocks:
    """Queries and keys in blocks, with the metadata of each block and the range of blocks that it meets.

    Attributes:
      grid: blocks of ROWS // G queries by KEYS keys.
      row_meta_Bn2R, key_meta_Bm2S: position and segment, int32; padding rows see nothing.
    """

    def __init__(
        self, static: StaticOptions, positions: TokenPositions, B: int, T: int, S: int, G: int
    ) -> None:
        self.G = G
        self.grid = grid = xla_streamed.BlockGrid(positions, static, T, S, bq=ROWS // G, bk=KEYS)
        padding = ROWS - grid.bq * G

        def stack(position_nBt: jax.Array, segment_nBt: jax.Array) -> jax.Array:
            n, _, t = position_nBt.shape
            both = (jnp.broadcast_to(x, (n, B, t)) for x in (position_nBt, segment_nBt))
            return jnp.swapaxes(jnp.stack(list(both), axis=2), 0, 1).astype(jnp.int32)

        rows = stack(*(jnp.repeat(x, G, axis=-1) for x in (grid.q_pos_nB, grid.q_segment_nB)))
        pad = ((0, 0), (0, 0), (0, 0), (0, padding))
        self.row_meta_Bn2R = jnp.pad(rows, pad, constant_values=-xla_streamed.FAR)
        self.key_meta_Bm2S = stack(grid.k_pos_mB, grid.k_segment_mB)

    def rows(self, x_BTNetc: jax.Array, K: int) -> jax.Array:
        """[B, T, N, ...] to [B, K, n, ROWS, ...]."""
        x, grid = operands.by_group(x_BTNetc, K), self.grid
        B, _, T, G, *etc = x.shape
        x = jnp.pad(x, ((0, 0), (0, 0), (0, grid.n * grid.bq - T), *((0, 0) for _ in (G, *etc))))
        x = x.reshape(B, K, grid.n, grid.bq * G, *etc)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, ROWS - grid.bq * G), *((0, 0) for _ in etc)))

    def queries(self, x_BKnRetc: jax.Array) -> jax.Array:
        """The inverse of `rows`."""
        B, K, n, _, *etc = x_BKnRetc.shape
        bq, G = self.grid.bq, self.G
        x = x_BKnRetc[:, :, :, : bq * G].reshape(B, K, n * bq, G, *etc)
        return operands.by_query(x[:, :, : self.grid.T])

    def keys(self, x_BSKH: jax.Array) -> jax.Array:
        """[B, S, K, H] to [B, K, m KEYS, H]."""
        return self.grid.pad_keys(operands.by_head(x_BSKH), 2)


def mask(row_2R: Ref, key_2S: Ref, static: StaticOptions, transposed: bool = False) -> jax.Array:
    """The mask from metadata in shared memory: bool [ROWS, KEYS], or [KEYS, ROWS] if `transposed`."""
    shape = (KEYS, ROWS) if transposed else (ROWS, KEYS)

    def spread(meta: Ref, axis: int) -> Iterator[jax.Array]:
        position, segment = (load_vector(meta.at[i], axis) for i in (0, 1))
        return (lax.broadcast_in_dim(x, shape, [axis]) for x in (position, segment))

    q_pos, q_segment = spread(row_2R, 1 if transposed else 0)
    k_pos, k_segment = spread(key_2S, 0 if transposed else 1)
    return visible(q_pos - k_pos, static.window) & (k_pos >= 0) & (q_segment == k_segment)


def load_vector(ref: Ref, axis: int) -> jax.Array:
    """Loads a vector from shared memory in the layout of axis `axis` of a product."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def matmul_transposed(a_RH: Ref, b_SH: Ref) -> jax.Array:
    """a · bᵀ, float32 [R, S], of operands in shared memory."""

    def multiply(acc: Ref) -> jax.Array:
        plgpu.wgmma(acc, a_RH, b_SH.transpose((1, 0)))
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a_RH.shape[0], b_SH.shape[0]), jnp.float32))


def matmul(a_RS: Ref, b_SH: Ref) -> jax.Array:
    """a · b, float32 [R, H], of operands in shared memory."""

    def multiply(acc: Ref) -> jax.Array:
        plgpu.wgmma(acc, a_RS, b_SH)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a_RS.shape[0], b_SH.shape[1]), jnp.float32))


def zeros(rows: int, H: int) -> jax.Array:
    """float32 zeros [rows, H] in the layout of a product."""
    return plgpu.layout_cast(jnp.zeros((rows, H), jnp.float32), plgpu.Layout.WGMMA)


def pipelined_loop[C](
    lo: jax.Array,
    hi: jax.Array,
    fetch: Callable[[Any, Any], None],
    use: Callable[[jax.Array, jax.Array, C], C],
    carry: C,
) -> C:
    """Computes `carry = use(g, slot, carry)` for g from lo to hi - 1, with the next copies in flight.

    `fetch(g, slot)` starts the copies of block g into the buffers `slot`, STAGES - 1 blocks ahead; `use`
    waits for them.
    """
    for ahead in range(STAGES - 1):
        pl.when(lo + ahead < hi)(functools.partial(fetch, lo + ahead, ahead))

    def step(g: jax.Array, carry: C) -> C:
        # All threads are done with the buffers of the step before, which the next copies overwrite.
        plgpu.commit_smem()
        ahead = g + STAGES - 1
        pl.when(ahead < hi)(lambda: fetch(ahead, lax.rem(ahead - lo, STAGES)))
        return use(g, lax.rem(g - lo, STAGES), carry)

    result: C = lax.fori_loop(lo, hi, step, carry)
    return result


def empty_carry(H: int) -> Carry:
    """The carry over no keys."""

    def rows(value: float) -> jax.Array:
        return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    return zeros(ROWS, H), rows(LOWEST), rows(0.0)


def finalize(carry: Carry) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp of one warpgroup's rows; 0 and -inf for a row that sees nothing."""
    out, top, total = carry
    mask = total > 0
    total = jnp.where(mask, total, 1.0)
    lse = jnp.where(mask, top + jnp.log(total), -jnp.inf)
    return out / lax.broadcast_in_dim(total, out.shape, [0]), lse


def add_key_block(
    q_RH: Ref,
    k_SH: Ref,
    v_SH: Ref,
    p_RS: Ref,
    mask: Callable[[jax.Array, jax.Array], jax.Array],
    carry: Carry,
    score: ScoreTransform,
    wait_for_values: Callable[[], None],
) -> Carry:
    """Adds one block of keys to the carry of one warpgroup's rows.

    `mask(row_RS, key_RS)` is the mask of the block; `wait_for_values()` waits for the values. Weights pass
    through the buffer `p_RS`, since the interpreter does not support wgmma with operands in registers.
    """
    out, top, total = carry

    raw_RS = matmul_transposed(q_RH, k_SH) * score.scale
    if score.softcap is not None:
        raw_RS = score.softcap * jnp.tanh(raw_RS / score.softcap)
    row_RS, key_RS = (
        plgpu.broadcasted_iota(jnp.int32, (ROWS, KEYS), axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1)
    )
    score_RS = jnp.where(mask(row_RS, key_RS), raw_RS, -jnp.inf)
    best = jnp.maximum(top, score_RS.max(axis=1))
    rescale = jnp.exp2((top - best) * LOG2E)
    weight_RS = jnp.exp2((score_RS - lax.broadcast_in_dim(best, score_RS.shape, [0])) * LOG2E)
    p_RS[...] = weight_RS.astype(p_RS.dtype)
    plgpu.commit_smem()
    wait_for_values()
    out = out * lax.broadcast_in_dim(rescale, out.shape, [0]) + matmul(p_RS, v_SH)
    return out, best, total * rescale + weight_RS.sum(axis=1)
