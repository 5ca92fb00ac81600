"""Column sums by their definition: all weights of the chunk, then their sum."""

import jax
import jax.numpy as jnp

from pallas_kernels import paged
from pallas_kernels.paged import Pool
from pallas_kernels.paged_votes import PageSumsCall


def unsupported(call: PageSumsCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def column_sums(
    q_BCNH: jax.Array,
    pool: Pool,
    table_BP: jax.Array,
    start_B: jax.Array,
    count_B: jax.Array,
    lse_BCN: jax.Array,
    *,
    first_B: jax.Array,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Returns sums_BKS."""
    B, C, N, _ = q_BCNH.shape
    _, weights_BCNS = paged.attend(
        q_BCNH,
        pool,
        table_BP,
        start_B,
        count_B,
        scale=scale,
        softcap=softcap,
        return_weights=True,
        backend="reference",
    )
    at_BC = start_B[:, None] + jnp.arange(C)[None]
    votes_BC = (at_BC >= first_B[:, None]) & (jnp.arange(C)[None] < count_B[:, None])
    weights_BCNS = jnp.where(votes_BC[:, :, None, None], weights_BCNS, 0)
    K = pool.n_kv_heads
    return jnp.sum(weights_BCNS.reshape(B, C, K, N // K, -1), axis=(1, 3)).astype(jnp.float32)
