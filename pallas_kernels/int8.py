"""Products of 8-bit integers: weights rounded once, activations rounded row by row as they come.

    codes = round(x / scale),  scale = max |x| / 127 along the contracted axis        (symmetric, -127..127)
    y[r, f] = (sum_d x_codes[r, d] w_codes[f, d]) * x_scale[r] * w_scale[f]        (the sum is exact, int32)

Every platform has a fast path for `dot_general` of int8 to int32: vector dot products on a CPU, the matrix
units of TPUs and GPUs. Weights lie with the contracted axis last, as those units read them.

Axes: X rows, D contracted width, F output channels.

Source: vector-wise symmetric quantisation as in LLM.int8() (arXiv 2208.07339), section 2.1, without its
16-bit outliers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.dispatch import platform
from pallas_kernels.typing import accumulator_dtype

LIMIT = 127  # the largest code; -128 is not used, so that codes are symmetric
LEAST = 1e-30  # smaller values are zeros: the reciprocal of their scale would not be finite
# XLA's CPU compiler has no fast product of a single row of integers; with a row of padding it has.
MIN_ROWS_CPU = 2
# It packs the right operand anew at every call, which for few rows takes longer than the product: up to so
# many, the rows are the right operand and the weights, which lie as they are read, the left one.
FEW_ROWS_CPU = 64


class Codes(NamedTuple):
    """Rounded values: `codes` times `scale`, which has the same axes but the contracted one."""

    codes: jax.Array
    scale: jax.Array


def quantize(x: jax.Array, axis: int = -1) -> Codes:
    """Rounds `x` with one scale for each vector along `axis`.

    Half codes round to even. A vector of zeros, or nothing above `LEAST`, has scale 1 and codes 0. One
    that holds NaN or infinity has a scale that is not finite, and so has what is multiplied by it.

    Returns:
      int8 codes; scales in float32 (float64 for float64).
    """
    x_acc = x.astype(accumulator_dtype(x.dtype))
    top = jnp.max(jnp.abs(x_acc), axis=axis, keepdims=True)
    # Products with reciprocals: compilers round quotients in more than one way, so that a row's codes would
    # depend on how many rows there are.
    scale = jnp.where(top < LEAST, 1, top * (1 / LIMIT)).astype(x_acc.dtype)
    return Codes(jnp.round(x_acc * (1 / scale)).astype(jnp.int8), jnp.squeeze(scale, axis))


def dequantize(value: Codes, axis: int = -1) -> jax.Array:
    """The values that codes stand for, in the dtype of their scales."""
    return value.codes.astype(value.scale.dtype) * jnp.expand_dims(value.scale, axis)


def matmul(x_XD: Codes, w_FD: Codes, dtype: DTypeLike) -> jax.Array:
    """y_XF in `dtype`.

    Raises:
      ValueError: the contracted widths disagree.
    """
    D, (F, width) = x_XD.codes.shape[1], w_FD.codes.shape
    if width != D:
        raise ValueError(f"rows of {D} values cannot meet {F} channels of {width}")
    sums_XF = _sums(x_XD.codes, w_FD.codes)
    acc_dtype = x_XD.scale.dtype
    y_XF = sums_XF.astype(acc_dtype) * x_XD.scale[:, None] * w_FD.scale.astype(acc_dtype)[None]
    return y_XF.astype(dtype)


def _sums(x_XD: jax.Array, w_FD: jax.Array) -> jax.Array:
    """The products of codes: int32 sums_XF."""
    X = x_XD.shape[0]
    if platform() == "cpu" and X <= FEW_ROWS_CPU:
        x_XD = jnp.pad(x_XD, ((0, max(0, MIN_ROWS_CPU - X)), (0, 0)))
        sums_FX = lax.dot_general(w_FD, x_XD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        return sums_FX.T[:X]
    return lax.dot_general(x_XD, w_FD, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def batched_sums(x_ECD: jax.Array, w_EDF: jax.Array) -> jax.Array:
    """Products of codes, one matrix for each of E groups of C rows: int32 sums_ECF."""
    C = x_ECD.shape[1]
    if platform() == "cpu" and C < MIN_ROWS_CPU:
        x_ECD = jnp.pad(x_ECD, ((0, 0), (0, MIN_ROWS_CPU - C), (0, 0)))
    axes = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(x_ECD, w_EDF, axes, preferred_element_type=jnp.int32)[:, :C]
