"""Paged attention by its definition: lay every row's pages out, then one dense softmax."""

import jax.numpy as jnp

from pallas_kernels.attention import reference
from pallas_kernels.masks import visible
from pallas_kernels.paged import read


def refuses(ask) -> str | None:
    return None


def attend(q_BCNH, pool, table_BP, start_B, count_B, *, window, scale, softcap, return_weights):
    """Returns out_BCNH, lse_BCN and weights_BCNS or None."""
    B, C = q_BCNH.shape[:2]
    S = table_BP.shape[1] * pool.page_size
    asked_BC = jnp.arange(C)[None] < count_B[:, None]
    q_pos_BC = jnp.where(asked_BC, start_B[:, None] + jnp.arange(C)[None], -1)
    # A position is laid out if any query of the row sees it; the rest stays as if it were not there.
    age_BCS = q_pos_BC[:, :, None] - jnp.arange(S)[None, None]
    seen_BS = jnp.any(visible(age_BCS, window), axis=1)
    live_BP = jnp.any(seen_BS.reshape(B, -1, pool.page_size), axis=-1)
    k, v = read(pool, jnp.where(live_BP, table_BP, 0))
    k_BSKH, v_BSKH = (x.reshape(B, S, *x.shape[3:]) for x in (k, v))
    k_pos_BS = jnp.where(seen_BS, jnp.arange(S)[None], -1)
    options = {
        "window": window,
        "causal": True,
        "scale": scale,
        "softcap": softcap,
        "q_pos_BT": q_pos_BC,
        "k_pos_BS": k_pos_BS,
        "segment_q_BT": None,
        "segment_k_BS": None,
    }
    out_BCNH, lse_BCN = reference.attention(q_BCNH, k_BSKH, v_BSKH, **options)
    if not return_weights:
        return out_BCNH, lse_BCN, None
    # The weight of key s is what comes out if the values are the rows of a unit matrix.
    wide = lse_BCN.dtype
    K = k_BSKH.shape[2]
    unit_BSKS = jnp.broadcast_to(jnp.eye(S, dtype=wide)[None, :, None], (B, S, K, S))
    weights_BCNS, _ = reference.attention(q_BCNH.astype(wide), k_BSKH.astype(wide), unit_BSKS, **options)
    return out_BCNH, lse_BCN, weights_BCNS
