"""Which cached keys matter: attention received so far, and what survives a budget (H2O).

    A[c, j] = sum of exp(s[h, i, j] - L[h, i]) over query heads h of key/value head c and queries i that see j

`column_sums` computes A for a prompt from Q, K and the log-sum-exp L that attention saved: one product, no
values, no T x S array. Afterwards a request lives in a `Slab` of fixed size: `compact` keeps the best of the
prompt, and every decode step is `append`, `attend` (once for each layer that reads the slab; it adds to A)
and `evict`.

Ties: of two keys with the same score the one at the lower position is kept.

Axes: B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, H head size, R slots.

Source: H2O (arXiv 2306.14048), section 4 and algorithm 1; the eviction follows attention of its own step, so
that a new token always sees everything still cached.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import attention as _attention
from pallas_kernels.dispatch import Backend, Choice, dispatch
from pallas_kernels.heavy_hitter.slab import Slab, append, attend, compact, evict, keep_set

__all__ = [
    "Slab",
    "append",
    "attend",
    "column_sums",
    "compact",
    "evict",
    "explain",
    "keep_set",
]


class ColumnSumsCall(NamedTuple):
    """What a body may know of a call before it runs: static facts only."""

    shape_BTNH: tuple[int, ...]
    shape_BSKH: tuple[int, ...]
    dtype: jnp.dtype
    window: int | None
    softcap: float | None
    positions: bool
    segments: bool


def column_sums(
    q_BTNH,
    k_BSKH,
    lse_BTN,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_pos_BT=None,
    k_pos_BS=None,
    segment_q_BT=None,
    segment_k_BS=None,
    backend: Backend | None = None,
) -> jax.Array:
    """Attention that each key received from all queries, summed over the heads that share the key.

    The arguments are those of `attention`, always causal, plus the log-sum-exp it returned for them. Over
    the keys the result sums to G times the number of queries that see anything. Sums of consecutive chunks
    of queries add up to the sum of the whole.

    Returns:
      sums_BKS, float32.
    Raises:
      ValueError: shapes or options disagree.
      NotImplementedError: the named body cannot take the call.
    """
    places = (q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    ask = _ask(q_BTNH, k_BSKH, lse_BTN, window, softcap, *places)
    body, choice = dispatch(__name__, backend, ask)
    return body.column_sums(
        q_BTNH,
        k_BSKH,
        lse_BTN,
        window=window,
        scale=q_BTNH.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        places=places,
        **({"interpret": True} if choice.interpret else {}),
    )


def explain(
    q_BTNH, k_BSKH, lse_BTN, *, backend: Backend | None = None, window=None, softcap=None, **rest
) -> Choice:
    """Which body `column_sums` with these arguments runs, and why better ones do not. Runs nothing."""
    names = ("q_pos_BT", "k_pos_BS", "segment_q_BT", "segment_k_BS")
    ask = _ask(q_BTNH, k_BSKH, lse_BTN, window, softcap, *(rest.get(name) for name in names))
    return dispatch(__name__, backend, ask)[1]


def _ask(q, k, lse, window, softcap, *places) -> ColumnSumsCall:
    ask = _attention.call_of(q, k, k, window, True, softcap, *places)
    if lse.shape != q.shape[:3]:
        raise ValueError(f"q {q.shape} needs a log-sum-exp of shape {q.shape[:3]}; it is {lse.shape}")
    return ColumnSumsCall(q.shape, k.shape, ask.dtype, window, softcap, ask.positions, ask.segments)
