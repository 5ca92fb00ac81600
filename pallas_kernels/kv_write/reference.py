"""The write by its definition: every position of every page selects the token written to it."""

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
    P, _, t, _ = values_PKtH.shape
    mine_PT = page_T[None] == jnp.arange(P)[:, None]
    hit_PtT = mine_PT[:, None] & (offset_T[None, None] == jnp.arange(t)[None, :, None])
    writer_Pt = jnp.argmax(hit_PtT, axis=-1)
    written_P1t1 = jnp.any(hit_PtT, axis=-1)[:, None, :, None]
    opened_P111 = jnp.any(hit_PtT[:, 0], axis=-1)[:, None, None, None]

    def placed(old_PKtH: jax.Array, new_TKH: jax.Array) -> jax.Array:
        new_PKtH = jnp.swapaxes(new_TKH[writer_Pt], 1, 2)
        return jnp.where(written_P1t1, new_PKtH, jnp.where(opened_P111, 0, old_PKtH))

    if layout == "columns":
        keys = jnp.swapaxes(placed(jnp.swapaxes(keys, 2, 3), k_TKH), 2, 3)
    else:
        keys = placed(keys, k_TKH)
    return keys, placed(values_PKtH, v_TKH)
