"""The arithmetic of one tile: some rows of queries against some keys, forward and backward.

A forward tile gives a *partial* result: unnormalised output, maximum score, sum of weights. Partials over
disjoint keys `merge` in any order, and `finalize` turns the last one into output and log-sum-exp. A backward
tile recomputes its weights from the log-sum-exp, so no array of size T x S outlives a tile (FlashAttention-2,
arXiv 2307.08691, algorithms 1 and 2).

Leading axes X are batch axes. Rows are [T, G]: the G query heads of one key/value head are folded into the
rows of every product. `mask_XTS` is true where a query sees a key.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.attention.operands import ScoreTransform


class PartialAttention(NamedTuple):
    """Attention over some of the keys.

    Attributes:
      out_XTGH: sum of exp(score - top) v.
      top_XTG1: maximum score; -inf over no visible key.
      total_XTG1: sum of exp(score - top).
    """

    out_XTGH: jax.Array
    top_XTG1: jax.Array
    total_XTG1: jax.Array


def forward(
    q_XTGH: jax.Array,
    k_XSH: jax.Array,
    v_XSH: jax.Array,
    mask_XTS: jax.Array,
    score: ScoreTransform,
    acc_dtype: DTypeLike,
) -> PartialAttention:
    """Attends with `acc_dtype` accumulators."""
    weight_XTGS, top, total = unnormalized_weights(
        raw_scores(q_XTGH, k_XSH, acc_dtype), mask_XTS[..., None, :], score
    )
    return PartialAttention(sum_over_keys(weight_XTGS.astype(v_XSH.dtype), v_XSH, acc_dtype), top, total)


def unnormalized_weights(
    raw_XS: jax.Array, mask_XS: jax.Array, score: ScoreTransform
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights exp(score - top) of raw products q·k along the last axis, the maximum `top`, and the sum."""
    score_XS = jnp.where(mask_XS, _capped(raw_XS, score), -jnp.inf)
    # The maximum of a row that sees nothing is -inf; -inf - -inf would be NaN.
    top_X1 = jnp.max(score_XS, axis=-1, keepdims=True)
    weight_XS = jnp.exp(score_XS - finite(top_X1))
    return weight_XS, top_X1, jnp.sum(weight_XS, axis=-1, keepdims=True)


def empty_partial(rows_XTG: tuple[int, ...], H: int, acc_dtype: DTypeLike) -> PartialAttention:
    """The partial over no keys; `rows_XTG` is its shape without H."""
    rows = (*rows_XTG, 1)
    return PartialAttention(
        jnp.zeros((*rows_XTG, H), acc_dtype), jnp.full(rows, -jnp.inf, acc_dtype), jnp.zeros(rows, acc_dtype)
    )


def merge(a: PartialAttention, b: PartialAttention) -> PartialAttention:
    """Merges the partials over two disjoint sets of keys."""
    top = jnp.maximum(a.top_XTG1, b.top_XTG1)
    scale_a, scale_b = jnp.exp(a.top_XTG1 - finite(top)), jnp.exp(b.top_XTG1 - finite(top))
    return PartialAttention(
        a.out_XTGH * scale_a + b.out_XTGH * scale_b, top, a.total_XTG1 * scale_a + b.total_XTG1 * scale_b
    )


def finalize(part: PartialAttention) -> tuple[jax.Array, jax.Array]:
    """Output out_XTGH and log-sum-exp lse_XTG; 0 and -inf for a row that sees nothing."""
    seen = part.total_XTG1 > 0
    total = jnp.where(seen, part.total_XTG1, 1)
    lse = jnp.where(seen, part.top_XTG1 + jnp.log(total), -jnp.inf)
    return part.out_XTGH / total, lse[..., 0]


def backward(
    q_XTGH: jax.Array,
    k_XSH: jax.Array,
    v_XSH: jax.Array,
    mask_XTS: jax.Array,
    dout_XTGH: jax.Array,
    lse_XTG: jax.Array,
    delta_XTG: jax.Array,
    score: ScoreTransform,
    acc_dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients dq_XTGH, dk_XSH, dv_XSH of one tile, in `acc_dtype`.

    Args:
      dout_XTGH: cotangent of the output, dtype of q.
      lse_XTG: log-sum-exp over *all* keys of the row, not just the tile's.
      delta_XTG: sum over H of out · dout, minus the cotangent of the log-sum-exp.
    """
    raw_XTGS, dweight_XTGS = raw_scores(q_XTGH, k_XSH, acc_dtype), raw_scores(dout_XTGH, v_XSH, acc_dtype)
    weight_XTGS, dscore_XTGS = score_gradients(
        raw_XTGS, dweight_XTGS, mask_XTS[..., None, :], lse_XTG[..., None], delta_XTG[..., None], score
    )
    dv_XSH = _sum_over_rows(weight_XTGS.astype(dout_XTGH.dtype), dout_XTGH, acc_dtype)
    dscore_XTGS = dscore_XTGS.astype(q_XTGH.dtype)
    return (
        sum_over_keys(dscore_XTGS, k_XSH, acc_dtype),
        _sum_over_rows(dscore_XTGS, q_XTGH, acc_dtype),
        dv_XSH,
    )


def score_gradients(
    raw_XS: jax.Array,
    dweight_XS: jax.Array,
    mask_XS: jax.Array,
    lse_X1: jax.Array,
    delta_X1: jax.Array,
    score: ScoreTransform,
) -> tuple[jax.Array, jax.Array]:
    """Softmax weights, and the gradient of the raw products q·k, from the gradient of the weights."""
    capped_XS = _capped(raw_XS, score)
    weight_XS = jnp.exp(jnp.where(mask_XS, capped_XS, -jnp.inf) - finite(lse_X1))
    dscore_XS = weight_XS * (dweight_XS - delta_X1) * score.scale
    if score.softcap is not None:
        dscore_XS *= 1 - jnp.square(capped_XS / score.softcap)
    return weight_XS, dscore_XS


def column_sums(
    q_XTGH: jax.Array,
    k_XSH: jax.Array,
    mask_XTS: jax.Array,
    lse_XTG: jax.Array,
    score: ScoreTransform,
    acc_dtype: DTypeLike,
) -> jax.Array:
    """Softmax weights of one tile summed over its rows, [X, S], from the log-sum-exp of whole rows."""
    raw_XTGS = raw_scores(q_XTGH, k_XSH, acc_dtype)
    weight_XTGS = weights_from_lse(raw_XTGS, mask_XTS[..., None, :], lse_XTG[..., None], score)
    return jnp.sum(weight_XTGS, axis=(-3, -2))


def weights_from_lse(
    raw_XS: jax.Array, mask_XS: jax.Array, lse_X1: jax.Array, score: ScoreTransform
) -> jax.Array:
    """Softmax weights of raw products q·k, from the log-sum-exp of their rows; 0 in rows that see nothing."""
    return jnp.exp(jnp.where(mask_XS, _capped(raw_XS, score), -jnp.inf) - finite(lse_X1))


def _capped(raw: jax.Array, score: ScoreTransform) -> jax.Array:
    scaled = raw * score.scale
    return scaled if score.softcap is None else score.softcap * jnp.tanh(scaled / score.softcap)


def finite(x: jax.Array) -> jax.Array:
    """Replaces -inf by 0. Uses a comparison, since Mosaic GPU has no test for finite numbers."""
    return jnp.where(x > -jnp.inf, x, 0)


def _fold(x_XTGH: jax.Array) -> jax.Array:
    *X, T, G, H = x_XTGH.shape
    return x_XTGH.reshape(*X, T * G, H)


def raw_scores(a_XTGH: jax.Array, b_XSH: jax.Array, acc_dtype: DTypeLike) -> jax.Array:
    """Products of rows with keys, [X, T, G, S]."""
    c_XRS = jnp.einsum("...RH,...SH->...RS", _fold(a_XTGH), b_XSH, preferred_element_type=acc_dtype)
    return c_XRS.reshape(*a_XTGH.shape[:-1], b_XSH.shape[-2])


def sum_over_keys(w_XTGS: jax.Array, b_XSH: jax.Array, acc_dtype: DTypeLike) -> jax.Array:
    """Sums over keys weighted per row, [X, T, G, H]."""
    c_XRH = jnp.einsum("...RS,...SH->...RH", _fold(w_XTGS), b_XSH, preferred_element_type=acc_dtype)
    return c_XRH.reshape(*w_XTGS.shape[:-1], b_XSH.shape[-1])


def _sum_over_rows(w_XTGS: jax.Array, a_XTGH: jax.Array, acc_dtype: DTypeLike) -> jax.Array:
    """Sums over rows weighted per key, [X, S, H]."""
    return jnp.einsum("...RS,...RH->...SH", _fold(w_XTGS), _fold(a_XTGH), preferred_element_type=acc_dtype)
