"""K/V stored in a narrower type than the model computes in: bfloat16, or 8-bit codes.

Codes have one scale per token and head, kept as four more bytes behind them: pages of H + 4 bytes a head are
written and moved like any others. Zeroed pages read as zeros, and bytes of -1 as NaN.

On a CPU a layer's pages are widened before its attention, which takes memory for one layer and some time; on
other devices bfloat16 is attended as it is, in kernels that want one type.

Axes: B rows, T tokens, P pages, K key/value heads, H head size, t positions of a page.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mixattn.spec.config import SCALE_BYTES
from pallas_kernels import int8, paged
from pallas_kernels.dispatch import platform


def stored_head_dim(head_dim: int, dtype: DTypeLike) -> int:
    """Elements of `dtype` that a head takes."""
    return head_dim + SCALE_BYTES * (jnp.dtype(dtype) == jnp.int8)


def narrowed(x_BTKH: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Keys or values as they are stored; in int8 with a float32 scale behind each head's codes."""
    if jnp.dtype(dtype) != jnp.int8:
        return x_BTKH.astype(dtype)
    codes_BTKH, scale_BTK = int8.quantize(x_BTKH)
    bytes_BTK4 = lax.bitcast_convert_type(scale_BTK.astype(jnp.float32), jnp.int8)
    return jnp.concatenate([codes_BTKH, bytes_BTK4], axis=-1)


def widened(stored: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The values of [..., H] that were stored, in `dtype`."""
    if stored.dtype != jnp.int8:
        return stored.astype(dtype)
    codes, scale_bytes = stored[..., :-SCALE_BYTES], stored[..., -SCALE_BYTES:]
    scale = lax.bitcast_convert_type(scale_bytes, jnp.float32)
    return (codes.astype(jnp.float32) * scale[..., None]).astype(dtype)


def readable(pool: paged.Pool, dtype: DTypeLike) -> paged.Pool:
    """The pool in a type that queries of `dtype` are attended in."""
    stored = pool.values.dtype
    if stored == dtype or (stored != jnp.int8 and platform() != "cpu"):
        return pool
    keys = jnp.swapaxes(pool.keys, -1, -2) if pool.layout == "columns" else pool.keys
    keys = widened(keys, dtype)
    keys = jnp.swapaxes(keys, -1, -2) if pool.layout == "columns" else keys
    return paged.Pool(keys, widened(pool.values, dtype), pool.layout)
