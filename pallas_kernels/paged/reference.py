"""Paged attention by its definition: gather the pages of each row, then one dense softmax."""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import reference
from pallas_kernels.masks import visible
from pallas_kernels.paged import PagedCall, Pool, read


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
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns out_BCNH, lse_BCN and weights_BCNS or None."""
    B, C = q_BCNH.shape[:2]
    S = table_BP.shape[1] * pool.page_size
    live_BC = jnp.arange(C)[None] < count_B[:, None]
    q_pos_BC = jnp.where(live_BC, start_B[:, None] + jnp.arange(C)[None], -1)
    # Only positions that some query of the row sees are gathered; the others count as empty slots.
    age_BCS = q_pos_BC[:, :, None] - jnp.arange(S)[None, None]
    seen_BS = jnp.any(visible(age_BCS, window), axis=1)
    live_BP = jnp.any(seen_BS.reshape(B, -1, pool.page_size), axis=-1)
    k, v = read(pool, jnp.where(live_BP, table_BP, 0))
    k_BSKH, v_BSKH = (x.reshape(B, S, *x.shape[3:]) for x in (k, v))
    k_pos_BS = jnp.where(seen_BS, jnp.arange(S)[None], -1)
    options: dict[str, Any] = {
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
    # With the rows of a unit matrix as values, the output is the weight of each key.
    acc_dtype = lse_BCN.dtype
    K = k_BSKH.shape[2]
    unit_BSKS = jnp.broadcast_to(jnp.eye(S, dtype=acc_dtype)[None, :, None], (B, S, K, S))
    weights_BCNS, _ = reference.attention(
        q_BCNH.astype(acc_dtype), k_BSKH.astype(acc_dtype), unit_BSKS, **options
    )
    return out_BCNH, lse_BCN, weights_BCNS
