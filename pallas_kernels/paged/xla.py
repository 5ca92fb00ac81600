"""Paged attention in plain XLA, by one of two methods.

`gathered` copies the pages that a row needs; with a window only the few pages that the window and the chunk
touch, independent of the context. `pagewise.attend` decodes without copying pages: it sends queries to the
pages. It reads the whole pool once, so it suits pools whose pages are mostly in use.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.attention.operands import ScoreTransform
from pallas_kernels.attention.xla_streamed import max_blocks_touched
from pallas_kernels.masks import oldest, positions_seen, visible
from pallas_kernels.paged import PagedCall, Pool, pagewise, read
from pallas_kernels.typing import accumulator_dtype

# The cost of gathering a page relative to reading it in place.
GATHER_COST = 4
# Positions gathered at a time.
BLOCK = 256


def unsupported(call: PagedCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def attend(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    *,
    window: int | None,
    scale: float,
    softcap: float | None,
    return_weights: bool,
    unshared: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns out_BCNH, lse_BCN and weights_BCNS or None."""
    B, C, N, H = q_BCNH.shape
    score = operands.ScoreTransform(float(scale), softcap)
    q_BKCGH = jnp.moveaxis(q_BCNH.reshape(B, C, pool.n_kv_heads, -1, H), 1, 2)
    whole_pool = C == 1 and pool.layout == "columns" and pool.pages <= GATHER_COST * table_BP.size
    if whole_pool:
        part, weights_BCNS = pagewise.attend(
            q_BKCGH,
            pool,
            table_BP,
            start_B,
            count_B,
            window,
            score,
            None if unshared else gathered,
            return_weights,
        )
    else:
        part, weights_BCNS = gathered(
            q_BKCGH, pool, table_BP, start_B, count_B, window, score, return_weights
        )
    out_BKCGH, lse_BKCG = xla_tiles.finalize(part)
    out_BCNH = jnp.moveaxis(out_BKCGH, 1, 2).reshape(B, C, N, H).astype(q_BCNH.dtype)
    return out_BCNH, jnp.moveaxis(lse_BKCG, 1, 2).reshape(B, C, N), weights_BCNS


def gathered(
    q_BKCGH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    window: int | None,
    score: ScoreTransform,
    return_weights: bool = False,
) -> tuple[xla_tiles.PartialAttention, jax.Array | None]:
    """The partial result over copies of the needed pages, and weights_BCNS if requested.

    Pages are copied and read in blocks, up to the last block of the longest row, so the cost follows the
    context and not the width of the table. A shorter row merges partials over no keys, which change none of
    its bits.
    """
    C, H, P, t = q_BKCGH.shape[2], q_BKCGH.shape[4], table_BP.shape[1], pool.page_size
    acc_dtype = accumulator_dtype(q_BKCGH.dtype)
    n_pages = P if window is None else min(P, pages_in_view(window, C, t))
    first_B = jnp.maximum(oldest(start_B, window), 0) // t
    tile = functools.partial(_tile, q_BKCGH, pool, table_BP, start_B, count_B, window, score, acc_dtype)
    n = max(1, BLOCK // t)
    if return_weights or n_pages <= n:
        return tile(first_B[:, None] + jnp.arange(n_pages)[None], return_weights)
    needed_B = -(-pagewise.row_end(start_B, count_B) // t) - first_B

    def merge_block(i: jax.Array, part: xla_tiles.PartialAttention) -> xla_tiles.PartialAttention:
        return xla_tiles.merge(part, tile(first_B[:, None] + i * n + jnp.arange(n)[None])[0])

    empty = xla_tiles.empty_partial(q_BKCGH.shape[:-1], H, acc_dtype)
    return lax.fori_loop(0, -(-jnp.max(needed_B) // n), merge_block, empty), None


def _tile(
    q_BKCGH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    window: int | None,
    score: ScoreTransform,
    acc_dtype: DTypeLike,
    logical_Bn: jax.Array,
    return_weights: bool = False,
) -> tuple[xla_tiles.PartialAttention, jax.Array | None]:
    """The partial over logical pages `logical_Bn` of each row, and weights_BCNS if requested."""
    B, _, C, _, H = q_BKCGH.shape
    P, t, n = table_BP.shape[1], pool.page_size, logical_Bn.shape[1]
    live_Bn = (logical_Bn * t < pagewise.row_end(start_B, count_B)[:, None]) & (logical_Bn < P)
    page_Bn = jnp.where(live_Bn, jnp.take_along_axis(table_BP, jnp.minimum(logical_Bn, P - 1), axis=1), 0)

    q_pos_BC = start_B[:, None] + jnp.arange(C)[None]
    k_pos_Bnt = logical_Bn[:, :, None] * t + jnp.arange(t)[None, None]
    mask_BCnt = visible(q_pos_BC[:, :, None, None] - k_pos_Bnt[:, None], window) & live_Bn[:, None, :, None]
    mask_BCnt &= (jnp.arange(C)[None] < count_B[:, None])[:, :, None, None]

    k_BKSH, v_BKSH = (jnp.moveaxis(x, 3, 1).reshape(B, -1, n * t, H) for x in read(pool, page_Bn))
    mask_B1CS = mask_BCnt.reshape(B, 1, C, n * t)
    part = xla_tiles.forward(q_BKCGH, k_BKSH, v_BKSH, mask_B1CS, score, acc_dtype)
    if not return_weights:
        return part, None
    weight_BKCGS, _, total = xla_tiles.unnormalized_weights(
        xla_tiles.raw_scores(q_BKCGH, k_BKSH, acc_dtype), mask_B1CS[..., None, :], score
    )
    weight_BCKGS = jnp.moveaxis(weight_BKCGS / jnp.where(total > 0, total, 1), 1, 2)
    return part, _by_position(weight_BCKGS.reshape(B, C, -1, n, t), jnp.where(live_Bn, logical_Bn, P), P)


def pages_in_view(window: int, chunk: int, page_size: int) -> int:
    """Maximum number of pages that `chunk` consecutive queries see, at the worst alignment to pages."""
    return max_blocks_touched(positions_seen(chunk, window), page_size)


def _by_position(weight_BCNnt: jax.Array, logical_Bn: jax.Array, P: int) -> jax.Array:
    """Scatters the weights of the gathered pages to their positions; logical page P is dropped."""
    B, C, N, _, t = weight_BCNnt.shape
    row_B1 = jnp.arange(B)[:, None]
    full_BPCNt = jnp.zeros((B, P, C, N, t), weight_BCNnt.dtype)
    full_BPCNt = full_BPCNt.at[row_B1, logical_Bn].set(jnp.moveaxis(weight_BCNnt, 3, 1), mode="drop")
    return jnp.moveaxis(full_BPCNt, 1, 3).reshape(B, C, N, P * t)
