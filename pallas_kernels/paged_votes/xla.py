"""Column sums in plain XLA: pages are copied one block at a time, up to the longest row's end."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import operands, xla_tiles
from pallas_kernels.masks import visible
from pallas_kernels.paged import Pool, pagewise, read
from pallas_kernels.paged_votes import PageSumsCall
from pallas_kernels.paged_votes.one_pass import attend
from pallas_kernels.typing import accumulator_dtype

__all__ = ["attend", "column_sums", "unsupported"]

BLOCK = 256  # positions copied at a time


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
    B, C, N, H = q_BCNH.shape
    K, t, P = pool.n_kv_heads, pool.page_size, table_BP.shape[1]
    score = operands.ScoreTransform(float(scale), softcap)
    acc_dtype, n = accumulator_dtype(q_BCNH.dtype), max(1, min(P, BLOCK // t))
    q_BKCGH = jnp.moveaxis(q_BCNH.reshape(B, C, K, N // K, H), 1, 2)
    lse_BKCG = jnp.moveaxis(lse_BCN.reshape(B, C, K, N // K), 1, 2)
    q_pos_BC = start_B[:, None] + jnp.arange(C)[None]
    votes_BC = (jnp.arange(C)[None] < count_B[:, None]) & (q_pos_BC >= first_B[:, None])
    end_B = jnp.where(jnp.any(votes_BC, axis=1), pagewise.row_end(start_B, count_B), 0)

    def add_block(i: jax.Array, sums_BKS: jax.Array) -> jax.Array:
        logical_n = i * n + jnp.arange(n)
        live_Bn = (logical_n[None] * t < end_B[:, None]) & (logical_n < P)[None]
        page_Bn = jnp.where(live_Bn, table_BP[:, jnp.minimum(logical_n, P - 1)], 0)
        k_BKSH = jnp.moveaxis(read(pool, page_Bn)[0], 3, 1).reshape(B, K, n * t, H)
        k_pos_S = (logical_n[:, None] * t + jnp.arange(t)[None]).reshape(-1)
        mask_BCS = visible(q_pos_BC[:, :, None] - k_pos_S[None, None], None) & votes_BC[:, :, None]
        mask_BCS &= jnp.repeat(live_Bn, t, axis=1)[:, None]
        more_BKS = xla_tiles.column_sums(q_BKCGH, k_BKSH, mask_BCS[:, None], lse_BKCG, score, acc_dtype)
        return lax.dynamic_update_slice(sums_BKS, more_BKS.astype(sums_BKS.dtype), (0, 0, i * n * t))

    blocks = -(-P // n)
    empty_BKS = jnp.zeros((B, K, blocks * n * t), jnp.float32)
    sums_BKS = lax.fori_loop(0, -(-jnp.max(end_B) // (n * t)), add_block, empty_BKS)
    return sums_BKS[:, :, : P * t]
