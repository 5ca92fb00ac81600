"""Attention of many queries at once: training and prefill.

    out[t] = sum_s softmax_s(cap(scale q[t]·k[s])) v[s]   over keys s that query t may see

A query sees the keys whose age `q_pos - k_pos` passes `masks.visible`, in filled slots (position >= 0), of
its own segment. A query that sees nothing gets 0, and log-sum-exp -inf.

Axes: B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, H head size. Query head n
reads key/value head n // G.

Backends: `reference` (the definition), `xla` (every platform), `tpu` (Pallas Mosaic TPU), `gpu` (Pallas
Mosaic GPU). Softmax and sums are float32 for every input dtype (float64 for float64 inputs).

Source: window and shared K/V as in MixAttention (arXiv 2409.15012); streaming softmax and backward pass
from the log-sum-exp as in FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
"""

from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import Backend, BackendChoice, dispatch
from pallas_kernels.typing import Shaped

__all__ = ["AttentionCall", "attention", "check_call", "explain"]


class AttentionCall(NamedTuple):
    """What a backend may know of a call before it runs: static properties only."""

    shape_BTNH: tuple[int, ...]
    shape_BSKH: tuple[int, ...]
    dtype: jnp.dtype
    window: int | None
    causal: bool
    softcap: float | None
    positions: bool  # explicit positions were given
    segments: bool


@overload
def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
    q_pos_BT: jax.Array | None = None,
    k_pos_BS: jax.Array | None = None,
    segment_q_BT: jax.Array | None = None,
    segment_k_BS: jax.Array | None = None,
    return_lse: Literal[False] = False,
    backend: Backend | None = None,
) -> jax.Array: ...


@overload
def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
    q_pos_BT: jax.Array | None = None,
    k_pos_BS: jax.Array | None = None,
    segment_q_BT: jax.Array | None = None,
    segment_k_BS: jax.Array | None = None,
    return_lse: Literal[True],
    backend: Backend | None = None,
) -> tuple[jax.Array, jax.Array]: ...


def attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
    q_pos_BT: jax.Array | None = None,
    k_pos_BS: jax.Array | None = None,
    segment_q_BT: jax.Array | None = None,
    segment_k_BS: jax.Array | None = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Attends; differentiable in q, k and v.

    Args:
      q_BTNH, k_BSKH, v_BSKH: one dtype. N is a multiple of K.
      window: number of keys a query sees, itself included; None for all. Needs `causal`.
      causal: hide keys of later positions.
      scale: multiplies q·k; 1/sqrt(H) if None.
      softcap: c replaces a score x by c·tanh(x / c), after scale and before the mask.
      q_pos_BT, k_pos_BS: absolute positions, int32, both or neither. Neither: keys are at 0..S-1 and the
        queries are the last T of them. A negative key position marks an empty slot.
      segment_q_BT, segment_k_BS: int32, both or neither; only equal segments see each other.
      return_lse: also return the log-sum-exp of each query's visible scores, natural base.
      backend: a backend by name runs or raises; None takes the best of the platform that supports the call.
    Returns:
      out_BTNH in the dtype of q; with `return_lse` also lse_BTN in float32.
    Raises:
      ValueError: shapes or options disagree.
      NotImplementedError: the named backend does not support the call.
    """
    call = check_call(
        q_BTNH, k_BSKH, v_BSKH, window, causal, softcap, q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS
    )
    implementation, choice = dispatch(__name__, backend, call)
    out_BTNH, lse_BTN = implementation.attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        window=window,
        causal=causal,
        scale=q_BTNH.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        q_pos_BT=q_pos_BT,
        k_pos_BS=k_pos_BS,
        segment_q_BT=segment_q_BT,
        segment_k_BS=segment_k_BS,
        **({"interpret": True} if choice.interpret else {}),
    )
    return (out_BTNH, lse_BTN) if return_lse else out_BTNH


def explain(
    q_BTNH: Shaped,
    k_BSKH: Shaped,
    v_BSKH: Shaped,
    *,
    backend: Backend | None = None,
    window: int | None = None,
    causal: bool = True,
    softcap: float | None = None,
    **rest: Any,
) -> BackendChoice:
    """The backend that `attention` with these arguments runs, and why better ones do not. Runs nothing.

    Arrays may be `jax.ShapeDtypeStruct`.
    """
    positions = (rest.get("q_pos_BT"), rest.get("k_pos_BS"))
    segments = (rest.get("segment_q_BT"), rest.get("segment_k_BS"))
    call = check_call(q_BTNH, k_BSKH, v_BSKH, window, causal, softcap, *positions, *segments)
    return dispatch(__name__, backend, call)[1]


def check_call(
    q: Shaped,
    k: Shaped,
    v: Shaped,
    window: int | None,
    causal: bool,
    softcap: float | None,
    q_pos: Shaped | None,
    k_pos: Shaped | None,
    segment_q: Shaped | None,
    segment_k: Shaped | None,
) -> AttentionCall:
    """Checks a call and returns its static properties.

    Raises:
      ValueError: shapes or options disagree.
    """
    (B, T, N, H), (_, S, K, _) = q.shape, k.shape
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (B, H):
        raise ValueError(
            f"q {q.shape} needs k and v of shape ({B}, S, K, {H}); they are {k.shape} and {v.shape}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v must share a dtype; they have {q.dtype}, {k.dtype}, {v.dtype}")
    if K == 0 or N % K:
        raise ValueError(f"{N} query heads do not split over {K} key/value heads")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window {window} with causal={causal}: a window is at least 1 and looks back only")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap {softcap} must be above 0")
    for name, of_queries, of_keys in (("positions", q_pos, k_pos), ("segments", segment_q, segment_k)):
        if of_queries is None and of_keys is None:
            continue
        if of_queries is None or of_keys is None:
            raise ValueError(f"{name} of queries and keys come together; only one was given")
        if (of_queries.shape, of_keys.shape) != ((B, T), (B, S)):
            raise ValueError(
                f"{name} have shapes {of_queries.shape}, {of_keys.shape}; q and k need {((B, T), (B, S))}"
            )
    if q_pos is None and T > S:
        raise ValueError(f"{T} queries cannot be the last of {S} keys; give positions")
    return AttentionCall(
        q.shape, k.shape, q.dtype, window, causal, softcap, q_pos is not None, segment_q is not None
    )
