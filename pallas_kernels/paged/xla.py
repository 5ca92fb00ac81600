"""Paged attention in plain XLA: gather the pages a row needs, then one softmax.

With a window only the pages that the window and the chunk can touch are gathered, whatever the context.
"""

import jax.numpy as jnp

from pallas_kernels.masks import oldest, visible
from pallas_kernels.precision import accumulator


def refuses(ask) -> str | None:
    return None


def attend(q_BCNH, pool, table_BP, start_B, count_B, *, window, scale, softcap, return_weights):
    """Returns out_BCNH, lse_BCN and weights_BCNS or None."""
    B, C, N, H = q_BCNH.shape
    P, K, t = table_BP.shape[1], pool.n_kv_heads, pool.page_size
    wide = accumulator(q_BCNH.dtype)
    near = P if window is None else min(P, pages_in_view(window, C, t))
    first_B = jnp.maximum(oldest(start_B, window), 0) // t
    logical_Bn = first_B[:, None] + jnp.arange(near)[None]
    end_B = jnp.where(count_B > 0, start_B + count_B, 0)
    live_Bn = (logical_Bn * t < end_B[:, None]) & (logical_Bn < P)
    page_Bn = jnp.take_along_axis(table_BP, jnp.minimum(logical_Bn, P - 1), axis=1)
    page_Bn = jnp.where(live_Bn, page_Bn, 0)

    q_pos_BC = start_B[:, None] + jnp.arange(C)[None]
    k_pos_Bnt = logical_Bn[:, :, None] * t + jnp.arange(t)[None, None]
    age_BCnt = q_pos_BC[:, :, None, None] - k_pos_Bnt[:, None]
    keep_BCnt = visible(age_BCnt, window) & live_Bn[:, None, :, None]
    keep_BCnt &= (jnp.arange(C)[None] < count_B[:, None])[:, :, None, None]

    q_BKCGH = jnp.moveaxis((q_BCNH * jnp.asarray(scale, q_BCNH.dtype)).reshape(B, C, K, N // K, H), 1, 2)
    k_BnKtH, v_BnKtH = pool.keys[page_Bn], pool.values[page_Bn]
    score_BKCGnt = jnp.einsum("BKCGH,BnKtH->BKCGnt", q_BKCGH, k_BnKtH, preferred_element_type=wide)
    if softcap is not None:
        score_BKCGnt = softcap * jnp.tanh(score_BKCGnt / softcap)
    score_BKCGnt = jnp.where(keep_BCnt[:, None, :, None], score_BKCGnt, -jnp.inf)
    top_BKCG = jnp.max(score_BKCGnt, axis=(-2, -1))
    safe_BKCG = jnp.where(jnp.isfinite(top_BKCG), top_BKCG, 0)
    weight_BKCGnt = jnp.exp(score_BKCGnt - safe_BKCG[..., None, None])
    total_BKCG = jnp.sum(weight_BKCGnt, axis=(-2, -1))
    share_BKCG = jnp.where(total_BKCG > 0, 1 / jnp.where(total_BKCG > 0, total_BKCG, 1), 0)
    out_BKCGH = jnp.einsum(
        "BKCGnt,BnKtH->BKCGH", weight_BKCGnt.astype(q_BCNH.dtype), v_BnKtH, preferred_element_type=wide
    )
    out_BKCGH = (out_BKCGH * share_BKCG[..., None]).astype(q_BCNH.dtype)
    lse_BKCG = jnp.where(total_BKCG > 0, safe_BKCG - jnp.log(share_BKCG), -jnp.inf)

    def by_query(x):
        return jnp.moveaxis(x, 1, 2).reshape(B, C, N, *x.shape[4:])

    weights_BCNS = None
    if return_weights:
        share_BKCGnt = weight_BKCGnt * share_BKCG[..., None, None]
        weights_BCNS = _by_position(by_query(share_BKCGnt), jnp.where(live_Bn, logical_Bn, P), P)
    return by_query(out_BKCGH), by_query(lse_BKCG), weights_BCNS


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
