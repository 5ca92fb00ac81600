"""The write by its definition: every position of every page asks who writes it."""

import jax.numpy as jnp


def refuses(ask) -> str | None:
    return None


def write(keys, values_PKtH, k_TKH, v_TKH, page_T, offset_T, *, layout):
    """Returns keys and values."""
    P, _, t, _ = values_PKtH.shape
    mine_PT = page_T[None] == jnp.arange(P)[:, None]
    hit_PtT = mine_PT[:, None] & (offset_T[None, None] == jnp.arange(t)[None, :, None])
    writer_Pt = jnp.argmax(hit_PtT, axis=-1)
    written_P1t1 = jnp.any(hit_PtT, axis=-1)[:, None, :, None]
    opened_P111 = jnp.any(hit_PtT[:, 0], axis=-1)[:, None, None, None]

    def placed(old_PKtH, new_TKH):
        new_PKtH = jnp.swapaxes(new_TKH[writer_Pt], 1, 2)
        return jnp.where(written_P1t1, new_PKtH, jnp.where(opened_P111, 0, old_PKtH))

    if layout == "columns":
        keys = jnp.swapaxes(placed(jnp.swapaxes(keys, 2, 3), k_TKH), 2, 3)
    else:
        keys = placed(keys, k_TKH)
    return keys, placed(values_PKtH, v_TKH)
