"""Places of a pool that differ by key/value head, as evicting caches need them: each head has its own victim.

Axes: B rows, K key/value heads, R places of a row, H head size, P pages, t positions of a page.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.paged import Pool


def write(pool: Pool, k_BKH: jax.Array, v_BKH: jax.Array, page_BK: jax.Array, offset_BK: jax.Array) -> Pool:
    """Writes one token per row, each head at a place of its own; in place if the pool is donated.

    A head whose page is outside 1..pages-1 is dropped.
    """
    page_BK = jnp.where((page_BK > 0) & (page_BK < pool.pages), page_BK, pool.pages)
    head_1K = jnp.arange(pool.n_kv_heads)[None]
    at = (page_BK, head_1K, offset_BK)
    at_key = (page_BK, head_1K, slice(None), offset_BK) if pool.layout == "columns" else at
    keys = pool.keys.at[at_key].set(k_BKH, mode="drop")
    return Pool(keys, pool.values.at[at].set(v_BKH, mode="drop"), pool.layout)


def read(pool: Pool, page_KR: jax.Array, offset_KR: jax.Array) -> tuple[jax.Array, jax.Array]:
    """k_KRH and v_KRH at these places, as stored."""
    head_K1 = jnp.arange(pool.n_kv_heads)[:, None]
    at = (page_KR, head_K1, offset_KR)
    at_key = (page_KR, head_K1, slice(None), offset_KR) if pool.layout == "columns" else at
    return pool.keys[at_key], pool.values[at]


def fill(pool: Pool, first_page: jax.Array, k_KRH: jax.Array, v_KRH: jax.Array) -> Pool:
    """Writes R / t whole pages from `first_page` on, place r of a head at offset r of their positions."""
    K, R, H = k_KRH.shape
    t = pool.page_size

    def as_pages(x_KRH: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_KRH.reshape(K, R // t, t, H), 0, 1)

    keys = as_pages(k_KRH)
    keys = jnp.swapaxes(keys, -1, -2) if pool.layout == "columns" else keys
    at = (first_page, 0, 0, 0)
    return Pool(
        jax.lax.dynamic_update_slice(pool.keys, keys, at),
        jax.lax.dynamic_update_slice(pool.values, as_pages(v_KRH), at),
        pool.layout,
    )
