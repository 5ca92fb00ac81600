"""The arithmetic of one tile: some rows of queries against some keys, forward and backward.

A forward tile gives a *partial* result (unnormalised output, largest score, sum of weights); partials over
disjoint keys `join` in any order, and `finish` turns the last one into output and log-sum-exp. A backward
tile recomputes its weights from the log-sum-exp, so nothing of size T x S outlives a tile (FlashAttention-2,
arXiv 2307.08691, algorithms 1 and 2).

Leading axes X are batch axes. Rows are [T, G]: the G query heads of one key/value head lie together and are
folded into the rows of every product. `keep_XTS` says which keys a query sees.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Score(NamedTuple):
    """How a score is made: softcap · tanh(scale · q·k / softcap), or scale · q·k without a cap."""

    scale: float
    softcap: float | None


class Partial(NamedTuple):
    """Attention over some of the keys: out is the sum of exp(score - top) v, total the sum of exp."""

    out_XTGH: jax.Array
    top_XTG1: jax.Array
    total_XTG1: jax.Array


def forward(q_XTGH, k_XSH, v_XSH, keep_XTS, score: Score, wide) -> Partial:
    """Attends with `wide` accumulators."""
    weight_XTGS, top, total = weigh(product(q_XTGH, k_XSH, wide), keep_XTS[..., None, :], score)
    return Partial(rows_times(weight_XTGS.astype(v_XSH.dtype), v_XSH, wide), top, total)


def weigh(raw_XS, keep_XS, score: Score):
    """Weights exp(score - top) of the raw products q·k along the last axis, with `top` and their sum."""
    score_XS = jnp.where(keep_XS, _capped(raw_XS, score), -jnp.inf)
    # A row that sees nothing has maximum -inf; it must not meet exp as -inf - -inf.
    top_X1 = jnp.max(score_XS, axis=-1, keepdims=True)
    weight_XS = jnp.exp(score_XS - finite(top_X1))
    return weight_XS, top_X1, jnp.sum(weight_XS, axis=-1, keepdims=True)


def nothing(rows_XTG: tuple[int, ...], H: int, wide) -> Partial:
    """The partial over no keys at all."""
    rows = (*rows_XTG, 1)
    return Partial(jnp.zeros((*rows_XTG, H), wide), jnp.full(rows, -jnp.inf, wide), jnp.zeros(rows, wide))


def join(a: Partial, b: Partial) -> Partial:
    """The partial over the keys of both."""
    top = jnp.maximum(a.top_XTG1, b.top_XTG1)
    of_a, of_b = jnp.exp(a.top_XTG1 - finite(top)), jnp.exp(b.top_XTG1 - finite(top))
    return Partial(a.out_XTGH * of_a + b.out_XTGH * of_b, top, a.total_XTG1 * of_a + b.total_XTG1 * of_b)


def finish(part: Partial) -> tuple[jax.Array, jax.Array]:
    """Output out_XTGH and log-sum-exp lse_XTG; 0 and -inf for a row that saw nothing."""
    seen = part.total_XTG1 > 0
    total = jnp.where(seen, part.total_XTG1, 1)
    lse = jnp.where(seen, part.top_XTG1 + jnp.log(total), -jnp.inf)
    return part.out_XTGH / total, lse[..., 0]


def backward(q_XTGH, k_XSH, v_XSH, keep_XTS, dout_XTGH, lse_XTG, delta_XTG, score: Score, wide):
    """Gradients dq_XTGH, dk_XSH, dv_XSH of one tile, in `wide`.

    Args:
      dout_XTGH: cotangent of the output, dtype of q.
      lse_XTG: log-sum-exp over *all* keys of the row, not just the tile's.
      delta_XTG: sum over H of out · dout, minus the cotangent of the log-sum-exp.
    """
    raw_XTGS, dweight_XTGS = product(q_XTGH, k_XSH, wide), product(dout_XTGH, v_XSH, wide)
    weight_XTGS, dscore_XTGS = slopes(
        raw_XTGS, dweight_XTGS, keep_XTS[..., None, :], lse_XTG[..., None], delta_XTG[..., None], score
    )
    dv_XSH = _keys_times(weight_XTGS.astype(dout_XTGH.dtype), dout_XTGH, wide)
    dscore_XTGS = dscore_XTGS.astype(q_XTGH.dtype)
    return rows_times(dscore_XTGS, k_XSH, wide), _keys_times(dscore_XTGS, q_XTGH, wide), dv_XSH


def slopes(raw_XS, dweight_XS, keep_XS, lse_X1, delta_X1, score: Score):
    """Softmax weights, and the gradient of the raw products q·k, from that of the weights."""
    capped_XS = _capped(raw_XS, score)
    weight_XS = jnp.exp(jnp.where(keep_XS, capped_XS, -jnp.inf) - finite(lse_X1))
    dscore_XS = weight_XS * (dweight_XS - delta_X1) * score.scale
    if score.softcap is not None:
        dscore_XS *= 1 - jnp.square(capped_XS / score.softcap)
    return weight_XS, dscore_XS


def columns(q_XTGH, k_XSH, keep_XTS, lse_XTG, score: Score, wide):
    """Weights of one tile summed over its rows, [X, S], given the log-sum-exp of whole rows."""
    raw_XTGS = product(q_XTGH, k_XSH, wide)
    weight_XTGS = weights_given(raw_XTGS, keep_XTS[..., None, :], lse_XTG[..., None], score)
    return jnp.sum(weight_XTGS, axis=(-3, -2))


def weights_given(raw_XS, keep_XS, lse_X1, score: Score):
    """Softmax weights of raw products q·k whose rows have this log-sum-exp; 0 in rows that see nothing."""
    return jnp.exp(jnp.where(keep_XS, _capped(raw_XS, score), -jnp.inf) - finite(lse_X1))


def _capped(raw, score: Score):
    scaled = raw * score.scale
    return scaled if score.softcap is None else score.softcap * jnp.tanh(scaled / score.softcap)


def finite(x):
    """0 in place of -inf. A comparison, since Mosaic GPU knows no test for finite numbers."""
    return jnp.where(x > -jnp.inf, x, 0)


def _fold(x_XTGH):
    *X, T, G, H = x_XTGH.shape
    return x_XTGH.reshape(*X, T * G, H)


def product(a_XTGH, b_XSH, wide):
    """Raw scores of rows against keys, [X, T, G, S]."""
    c_XRS = jnp.einsum("...RH,...SH->...RS", _fold(a_XTGH), b_XSH, preferred_element_type=wide)
    return c_XRS.reshape(*a_XTGH.shape[:-1], b_XSH.shape[-2])


def rows_times(w_XTGS, b_XSH, wide):
    c_XRH = jnp.einsum("...RS,...SH->...RH", _fold(w_XTGS), b_XSH, preferred_element_type=wide)
    return c_XRH.reshape(*w_XTGS.shape[:-1], b_XSH.shape[-1])


def _keys_times(w_XTGS, a_XTGH, wide):
    return jnp.einsum("...RS,...RH->...SH", _fold(w_XTGS), _fold(a_XTGH), preferred_element_type=wide)
