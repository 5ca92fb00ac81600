"""Paged attention in plain XLA, two ways.

`_gathered` lays the pages a row needs out beside each other: with a window only the few that the window and
the chunk can touch, whatever the context. `pagewise.attend` decodes without moving any page: queries go to
the pages instead. It reads the whole pool once, so it is for pools about as large as what is alive.
"""

import functools

import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import xla_tiles
from pallas_kernels.masks import oldest, visible
from pallas_kernels.paged import pagewise, read
from pallas_kernels.precision import accumulator

# Gathering a page costs about this many times reading it in place.
GATHER_COST = 4
# Positions copied at a time.
BLOCK = 256


def refuses(ask) -> str | None:
    return None


def attend(q_BCNH, pool, table_BP, start_B, count_B, *, window, scale, softcap, return_weights):
    """Returns out_BCNH, lse_BCN and weights_BCNS or None."""
    B, C, N, H = q_BCNH.shape
    score = xla_tiles.Score(float(scale), softcap)
    q_BKCGH = jnp.moveaxis(q_BCNH.reshape(B, C, pool.n_kv_heads, -1, H), 1, 2)
    whole_pool = C == 1 and pool.layout == "columns" and pool.pages <= GATHER_COST * table_BP.size
    if whole_pool and not return_weights:
        part, weights_BCNS = pagewise.attend(
            q_BKCGH, pool, table_BP, start_B, count_B, window, score, gathered
        )
    else:
        part, weights_BCNS = gathered(
            q_BKCGH, pool, table_BP, start_B, count_B, window, score, return_weights
        )
    out_BKCGH, lse_BKCG = xla_tiles.finish(part)
    out_BCNH = jnp.moveaxis(out_BKCGH, 1, 2).reshape(B, C, N, H).astype(q_BCNH.dtype)
    return out_BCNH, jnp.moveaxis(lse_BKCG, 1, 2).reshape(B, C, N), weights_BCNS


def gathered(q_BKCGH, pool, table_BP, start_B, count_B, window, score, return_weights=False):
    """The partial result over copies of the needed pages, and weights_BCNS if asked for.

    Pages are copied and read a block at a time, and only as many blocks as the row that reaches furthest
    needs: a short context in a wide table costs what it is long. A row that ends before its neighbours joins
    partials over nothing, which change no bit of its own.
    """
    C, H, P, t = q_BKCGH.shape[2], q_BKCGH.shape[4], table_BP.shape[1], pool.page_size
    wide = accumulator(q_BKCGH.dtype)
    near = P if window is None else min(P, pages_in_view(window, C, t))
    first_B = jnp.maximum(oldest(start_B, window), 0) // t
    tile = functools.partial(_tile, q_BKCGH, pool, table_BP, start_B, count_B, window, score, wide)
    n = max(1, BLOCK // t)
    if return_weights or near <= n:
        return tile(first_B[:, None] + jnp.arange(near)[None], return_weights)
    needs_B = -(-pagewise.end(start_B, count_B) // t) - first_B

    def joined(i, part):
        return xla_tiles.join(part, tile(first_B[:, None] + i * n + jnp.arange(n)[None])[0])

    nothing = xla_tiles.nothing(q_BKCGH.shape[:-1], H, wide)
    return lax.fori_loop(0, -(-jnp.max(needs_B) // n), joined, nothing), None


def _tile(q_BKCGH, pool, table_BP, start_B, count_B, window, score, wide, logical_Bn, return_weights=False):
    """The partial over logical pages `logical_Bn` of each row, and weights_BCNS if asked for."""
    B, _, C, _, H = q_BKCGH.shape
    P, t, n = table_BP.shape[1], pool.page_size, logical_Bn.shape[1]
    live_Bn = (logical_Bn * t < pagewise.end(start_B, count_B)[:, None]) & (logical_Bn < P)
    page_Bn = jnp.where(live_Bn, jnp.take_along_axis(table_BP, jnp.minimum(logical_Bn, P - 1), axis=1), 0)

    q_pos_BC = start_B[:, None] + jnp.arange(C)[None]
    k_pos_Bnt = logical_Bn[:, :, None] * t + jnp.arange(t)[None, None]
    keep_BCnt = visible(q_pos_BC[:, :, None, None] - k_pos_Bnt[:, None], window) & live_Bn[:, None, :, None]
    keep_BCnt &= (jnp.arange(C)[None] < count_B[:, None])[:, :, None, None]

    k_BKSH, v_BKSH = (jnp.moveaxis(x, 3, 1).reshape(B, -1, n * t, H) for x in read(pool, page_Bn))
    keep_B1CS = keep_BCnt.reshape(B, 1, C, n * t)
    part = xla_tiles.forward(q_BKCGH, k_BKSH, v_BKSH, keep_B1CS, score, wide)
    if not return_weights:
        return part, None
    weight_BKCGS, _, total = xla_tiles.weigh(
        xla_tiles.product(q_BKCGH, k_BKSH, wide), keep_B1CS[..., None, :], score
    )
    weight_BCKGS = jnp.moveaxis(weight_BKCGS / jnp.where(total > 0, total, 1), 1, 2)
    return part, _by_position(weight_BCKGS.reshape(B, C, -1, n, t), jnp.where(live_Bn, logical_Bn, P), P)


def pages_in_view(window: int, chunk: int, page_size: int) -> int:
    """The most pages that `chunk` consecutive queries can see: window - 1 + chunk positions, ill aligned."""
    return (window - 1 + chunk + page_size - 2) // page_size + 1


def _by_position(weight_BCNnt, logical_Bn, P):
    """Puts the weights of the gathered pages where their positions are; logical page P is dropped."""
    B, C, N, _, t = weight_BCNnt.shape
    row_B1 = jnp.arange(B)[:, None]
    full_BPCNt = jnp.zeros((B, P, C, N, t), weight_BCNnt.dtype)
    full_BPCNt = full_BPCNt.at[row_B1, logical_Bn].set(jnp.moveaxis(weight_BCNnt, 3, 1), mode="drop")
    return jnp.moveaxis(full_BPCNt, 1, 3).reshape(B, C, N, P * t)
