"""The write as two scatters. A caller that donates the pool gets it back in place; another gets a copy."""

import jax.numpy as jnp


def refuses(ask) -> str | None:
    return None


def write(keys, values_PKtH, k_TKH, v_TKH, page_T, offset_T, *, layout):
    """Returns keys and values."""
    opened_T = jnp.where(offset_T == 0, page_T, len(values_PKtH))
    keys, values_PKtH = (pages.at[opened_T].set(0, mode="drop") for pages in (keys, values_PKtH))
    at = (page_T, slice(None), offset_T)
    at_key = (page_T, slice(None), slice(None), offset_T) if layout == "columns" else at
    return keys.at[at_key].set(k_TKH, mode="drop"), values_PKtH.at[at].set(v_TKH, mode="drop")
