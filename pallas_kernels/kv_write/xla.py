"""The write as two scatters; in place if the caller donates the pool, otherwise to a copy."""

import jax
import jax.numpy as jnp

from pallas_kernels.kv_write import KvWriteCall
from pallas_kernels.typing import Layout


def unsupported(call: KvWriteCall) -> str | None:
    """The reason why this backend cannot run the call, or None."""
    return None


def write(
    keys: jax.Array,
    values_PKtH: jax.Array,
    k_TKH: jax.Array,
    v_TKH: jax.Array,
    page_T: jax.Array,
    offset_T: jax.Array,
    *,
    layout: Layout,
) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values."""
    opened_T = jnp.where(offset_T == 0, page_T, len(values_PKtH))
    keys, values_PKtH = (pages.at[opened_T].set(0, mode="drop") for pages in (keys, values_PKtH))
    at = (page_T, slice(None), offset_T)
    at_key = (page_T, slice(None), slice(None), offset_T) if layout == "columns" else at
    return keys.at[at_key].set(k_TKH, mode="drop"), values_PKtH.at[at].set(v_TKH, mode="drop")
