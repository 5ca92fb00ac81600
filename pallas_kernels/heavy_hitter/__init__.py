"""Heavy hitters (H2O): the attention that each cached key has received, and eviction to a fixed budget.

    A[c, j] = sum of exp(s[h, i, j] - L[h, i]) over query heads h of key/value head c and queries i that see j

`column_sums` computes A for a prompt from Q, K and the log-sum-exp L that attention saved: one product, no
values, no T x S array. Afterwards a `Slab` of fixed size holds the request: `compact` keeps the best keys of
the prompt, and a decode step is `append`, `attend` (once for each layer that reads the slab; it adds to A)
and `evict`.

Ties: of two keys with the same score the one at the lower position is kept.

Axes: B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, H head size, R slots.

Source: H2O (arXiv 2306.14048), section 4 and algorithm 1. Eviction follows the attention of its step, so
that a new token sees everything that is still cached.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import attention as _attention
from pallas_kernels.attention.operands import TokenPositions
from pallas_kernels.dispatch import Backend, BackendChoice, dispatch
from pallas_kernels.heavy_hitter.slab import (
    Slab,
    SlabLimits,
    append,
    attend,
    attend_weights,
    compact,
    emptied,
    evict,
    keep_set,
)
from pallas_kernels.typing import Shaped

__all__ = [
    "ColumnSumsCall",
    "Slab",
    "SlabLimits",
    "append",
    "attend",
    "attend_weights",
    "column_sums",
    "compact",
    "emptied",
    "evict",
    "explain",
    "keep_set",
]


class ColumnSumsCall(NamedTuple):
    """What a backend may know of a call before it runs: static properties only."""

    shape_BTNH: tuple[int, ...]
    shape_BSKH: tuple[int, ...]
    dtype: jnp.dtype
    window: int | None
    softcap: float | None
    positions: bool
    segments: bool


def column_sums(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    lse_BTN: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_pos_BT: jax.Array | None = None,
    k_pos_BS: jax.Array | None = None,
    segment_q_BT: jax.Array | None = None,
    segment_k_BS: jax.Array | None = None,
    backend: Backend | None = None,
) -> jax.Array:
    """The attention that each key receives from all queries, summed over the heads that share the key.

    The arguments are those of `attention`, always causal, plus the log-sum-exp it returned for them. Over
    the keys the result sums to G times the number of queries that see anything. Sums of consecutive chunks
    of queries add up to the sum of the whole.

    Returns:
      sums_BKS, float32.
    Raises:
      ValueError: shapes or options disagree.
      NotImplementedError: the named backend does not support the call.
    """
    positions = TokenPositions(q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
    call = _check_call(q_BTNH, k_BSKH, lse_BTN, window, softcap, positions)
    implementation, choice = dispatch(__name__, backend, call)
    sums_BKS: jax.Array = implementation.column_sums(
        q_BTNH,
        k_BSKH,
        lse_BTN,
        window=window,
        scale=q_BTNH.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        positions=positions,
        **({"interpret": True} if choice.interpret else {}),
    )
    return sums_BKS


def explain(
    q_BTNH: Shaped,
    k_BSKH: Shaped,
    lse_BTN: Shaped,
    *,
    backend: Backend | None = None,
    window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> BackendChoice:
    """The backend that `column_sums` with these arguments runs, and why better ones do not. Runs nothing."""
    positions = TokenPositions(*(rest.get(name) for name in TokenPositions._fields))
    call = _check_call(q_BTNH, k_BSKH, lse_BTN, window, softcap, positions)
    return dispatch(__name__, backend, call)[1]


def _check_call(
    q: Shaped,
    k: Shaped,
    lse: Shaped,
    window: int | None,
    softcap: float | None,
    positions: TokenPositions,
) -> ColumnSumsCall:
    call = _attention.check_call(q, k, k, window, True, softcap, *positions)
    if lse.shape != q.shape[:3]:
        raise ValueError(f"q {q.shape} needs a log-sum-exp of shape {q.shape[:3]}; it is {lse.shape}")
    return ColumnSumsCall(q.shape, k.shape, call.dtype, window, softcap, call.positions, call.segments)
