"""What the Hopper kernels share: tiles of 64 rows by 64 keys, their products, and who sees whom in them.

Rows are queries x G of one key/value head, padded to 64 a block; keys come in blocks of 64. A kernel walks a
range of blocks with the next ones on their way (`walk`). Where positions are not the plain ones, each block
carries its facts, position and segment of every row or key, beside it.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention import xla, xla_streamed
from pallas_kernels.masks import visible

ROWS, KEYS, STAGES = 64, 64, 4
LOWEST = -1e30  # below every score, and still finite: exp(LOWEST - LOWEST) is 1, not NaN
LOG2E = math.log2(math.e)
TILED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))


def refuses_shape(dtype, H: int, G: int) -> str | None:
    """What holds for every kernel that multiplies by `tile`."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"wgmma multiplies 16-bit floats, not {dtype}"
    if H not in (64, 128):
        return f"head size {H} is neither 64 nor 128, which fit shared memory in {STAGES} stages"
    if G > ROWS:
        return f"{G} query heads share a key/value head; {ROWS} fit"
    return None


class Folded:
    """Queries and keys in blocks, with the facts of each and the range of blocks that each one meets.

    Attributes:
      grid: blocks of ROWS // G queries by KEYS keys.
      row_facts_Bn2R, key_facts_Bm2S: position and segment, int32; rows that nobody asked for see nothing.
    """

    def __init__(self, static, places, B, T, S, G):
        self.G = G
        self.grid = grid = xla_streamed.BlockGrid(places, static, T, S, bq=ROWS // G, bk=KEYS)
        spare = ROWS - grid.bq * G

        def facts(position_nBt, segment_nBt):
            n, _, t = position_nBt.shape
            both = (jnp.broadcast_to(x, (n, B, t)) for x in (position_nBt, segment_nBt))
            return jnp.swapaxes(jnp.stack(list(both), axis=2), 0, 1).astype(jnp.int32)

        rows = facts(*(jnp.repeat(x, G, axis=-1) for x in (grid.q_pos_nB, grid.q_segment_nB)))
        nobody = ((0, 0), (0, 0), (0, 0), (0, spare))
        self.row_facts_Bn2R = jnp.pad(rows, nobody, constant_values=-xla_streamed.FAR)
        self.key_facts_Bm2S = facts(grid.k_pos_mB, grid.k_segment_mB)

    def rows(self, x_BTNetc, K):
        """[B, T, N, ...] to [B, K, n, ROWS, ...]."""
        x, grid = xla.by_group(x_BTNetc, K), self.grid
        B, _, T, G, *etc = x.shape
        x = jnp.pad(x, ((0, 0), (0, 0), (0, grid.n * grid.bq - T), *((0, 0) for _ in (G, *etc))))
        x = x.reshape(B, K, grid.n, grid.bq * G, *etc)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, ROWS - grid.bq * G), *((0, 0) for _ in etc)))

    def queries(self, x_BKnRetc):
        """The inverse of `rows`."""
        B, K, n, _, *etc = x_BKnRetc.shape
        bq, G = self.grid.bq, self.G
        x = x_BKnRetc[:, :, :, : bq * G].reshape(B, K, n * bq, G, *etc)
        return xla.by_query(x[:, :, : self.grid.T])

    def keys(self, x_BSKH):
        """[B, S, K, H] to [B, K, m KEYS, H]."""
        return self.grid.pad_keys(xla.by_head(x_BSKH), 2)


def seen(row_2R, key_2S, static, turned=False):
    """Which rows see which keys, from facts in shared memory: bool [ROWS, KEYS], or [KEYS, ROWS] `turned`."""
    shape = (KEYS, ROWS) if turned else (ROWS, KEYS)

    def spread(facts, axis):
        position, segment = (vector(facts.at[i], axis) for i in (0, 1))
        return (lax.broadcast_in_dim(x, shape, [axis]) for x in (position, segment))

    q_pos, q_segment = spread(row_2R, 1 if turned else 0)
    k_pos, k_segment = spread(key_2S, 0 if turned else 1)
    return visible(q_pos - k_pos, static.window) & (k_pos >= 0) & (q_segment == k_segment)


def vector(ref, axis):
    """A vector of shared memory, laid out as axis `axis` of a product."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def product(a_RH, b_SH):
    """a · b transposed, float32 [R, S], of operands in shared memory."""

    def multiply(acc):
        plgpu.wgmma(acc, a_RH, b_SH.transpose((1, 0)))
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a_RH.shape[0], b_SH.shape[0]), jnp.float32))


def times(a_RS, b_SH):
    """a · b, float32 [R, H], of operands in shared memory."""

    def multiply(acc):
        plgpu.wgmma(acc, a_RS, b_SH)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((a_RS.shape[0], b_SH.shape[1]), jnp.float32))


def zeros(rows, H):
    return plgpu.layout_cast(jnp.zeros((rows, H), jnp.float32), plgpu.Layout.WGMMA)


def walk(lo, hi, fetch, use, carry):
    """`carry = use(g, slot, carry)` for g from lo to hi - 1, the next STAGES - 1 blocks being on their way.

    `fetch(g, slot)` orders the copies of block g into the buffers `slot`; `use` waits for them.
    """
    for ahead in range(STAGES - 1):
        pl.when(lo + ahead < hi)(functools.partial(fetch, lo + ahead, ahead))

    def step(g, carry):
        # Everybody is done with the buffers of the step before, which the next copies go to.
        plgpu.commit_smem()
        ahead = g + STAGES - 1
        pl.when(ahead < hi)(lambda: fetch(ahead, lax.rem(ahead - lo, STAGES)))
        return use(g, lax.rem(g - lo, STAGES), carry)

    return lax.fori_loop(lo, hi, step, carry)


def nothing(H):
    """Output, top and total of one warpgroup's rows over no keys."""

    def rows(value):
        return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))

    zeros_RH = plgpu.layout_cast(jnp.zeros((ROWS, H), jnp.float32), plgpu.Layout.WGMMA)
    return zeros_RH, rows(LOWEST), rows(0.0)


def finish(carry):
    """Output and log-sum-exp of one warpgroup's rows; 0 and -inf for a row that saw nothing."""
    out, top, total = carry
    seen = total > 0
    total = jnp.where(seen, total, 1.0)
    lse = jnp.where(seen, top + jnp.log(total), -jnp.inf)
    return out / lax.broadcast_in_dim(total, out.shape, [0]), lse


def tile(q_RH, k_SH, v_SH, p_RS, keep, carry, score, values_here):
    """Adds one block of keys to (output, top, total) of one warpgroup's rows.

    `keep(row_RS, key_RS)` says who sees whom; `values_here()` waits for the values. Weights pass through the
    buffer `p_RS`: the interpreter knows no wgmma with operands in registers.
    """
    out, top, total = carry

    raw_RS = product(q_RH, k_SH) * score.scale
    if score.softcap is not None:
        raw_RS = score.softcap * jnp.tanh(raw_RS / score.softcap)
    row_RS, key_RS = (
        plgpu.broadcasted_iota(jnp.int32, (ROWS, KEYS), axis, layout=plgpu.Layout.WGMMA) for axis in (0, 1)
    )
    score_RS = jnp.where(keep(row_RS, key_RS), raw_RS, -jnp.inf)
    best = jnp.maximum(top, score_RS.max(axis=1))
    fade = jnp.exp2((top - best) * LOG2E)
    weight_RS = jnp.exp2((score_RS - lax.broadcast_in_dim(best, score_RS.shape, [0])) * LOG2E)
    p_RS[...] = weight_RS.astype(p_RS.dtype)
    plgpu.commit_smem()
    values_here()
    out = out * lax.broadcast_in_dim(fade, out.shape, [0]) + times(p_RS, v_SH)
    return out, best, total * fade + weight_RS.sum(axis=1)
