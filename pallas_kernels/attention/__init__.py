"""Attention of many queries at once: training and prefill.

    out[t] = sum_s softmax_s(cap(scale q[t]·k[s])) v[s]   over keys s that query t may see

Seen are keys whose age `q_pos - k_pos` passes `masks.visible`, in filled slots (position >= 0), of the
query's own segment. A query that sees nothing gets 0, and log-sum-exp -inf.

Axes: B batch, T queries, S keys, N query heads, K key/value heads, G = N // K, H head size. Query head n
reads key/value head n // G.

Bodies: `reference` (the definition), `xla` (every platform), `tpu` (Pallas Mosaic TPU), `gpu` (Pallas
Mosaic GPU). Softmax and sums are float32 whatever the inputs (float64 for float64 inputs).

Source: window and shared K/V as in MixAttention (arXiv 2409.15012); streaming softmax and backward pass
from the log-sum-exp as in FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
"""

from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.dispatch import Backend, Choice, dispatch


class AttentionCall(NamedTuple):
    """What a body may know of a call before it runs: static facts only."""

    shape_BTNH: tuple[int, ...]
    shape_BSKH: tuple[int, ...]
    dtype: jnp.dtype
    window: int | None
    causal: bool
    softcap: float | None
    positions: bool  # explicit positions were given
    segments: bool


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    window: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    softcap: float | None = None,
    q_pos_BT=None,
    k_pos_BS=None,
    segment_q_BT=None,
    segment_k_BS=None,
    return_lse: bool = False,
    backend: Backend | None = None,
):
    """Attends; differentiable in q, k and v.

    Args:
      q_BTNH, k_BSKH, v_BSKH: one dtype. N is a multiple of K.
      window: keys a query sees, itself included; None for all. Needs `causal`.
      causal: hide keys of later positions.
      scale: multiplies q·k; 1/sqrt(H) if None.
      softcap: c replaces a score x by c·tanh(x / c), after scale and before the mask.
      q_pos_BT, k_pos_BS: absolute positions, int32, both or neither. Neither: keys are at 0..S-1 and the
        queries are the last T of them. A negative key position marks an empty slot.
      segment_q_BT, segment_k_BS: int32, both or neither; only equal segments see each other.
      return_lse: also return the log-sum-exp of each query's visible scores, natural base.
      backend: a body by name runs or raises; None takes the platform's best that can.
    Returns:
      out_BTNH in the dtype of q; with `return_lse` also lse_BTN in float32.
    Raises:
      ValueError: shapes or options disagree.
      NotImplementedError: the named body cannot take the call.
    """
    what = call_of(
        q_BTNH, k_BSKH, v_BSKH, window, causal, softcap, q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS
    )
    body, choice = dispatch(__name__, backend, what)
    out_BTNH, lse_BTN = body.attention(
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
    q_BTNH, k_BSKH, v_BSKH, *, backend: Backend | None = None, window=None, causal=True, softcap=None, **rest
) -> Choice:
    """Which body `attention` with these arguments runs, and why better ones do not. Runs nothing.

    Arrays may be `jax.ShapeDtypeStruct`.
    """
    positions = (rest.get("q_pos_BT"), rest.get("k_pos_BS"))
    segments = (rest.get("segment_q_BT"), rest.get("segment_k_BS"))
    return dispatch(
        __name__, backend, call_of(q_BTNH, k_BSKH, v_BSKH, window, causal, softcap, *positions, *segments)
    )[1]


def call_of(q, k, v, window, causal, softcap, q_pos, k_pos, segment_q, segment_k) -> AttentionCall:
    """The static facts of a call, checked."""
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
    for what, pair, shapes in (
        ("positions", (q_pos, k_pos), ((B, T), (B, S))),
        ("segments", (segment_q, segment_k), ((B, T), (B, S))),
    ):
        if (pair[0] is None) != (pair[1] is None):
            raise ValueError(f"{what} of queries and keys come together; only one was given")
        if pair[0] is not None and (pair[0].shape, pair[1].shape) != shapes:
            raise ValueError(f"{what} have shapes {pair[0].shape}, {pair[1].shape}; q and k need {shapes}")
    if q_pos is None and T > S:
        raise ValueError(f"{T} queries cannot be the last of {S} keys; give positions")
    return AttentionCall(
        q.shape, k.shape, q.dtype, window, causal, softcap, q_pos is not None, segment_q is not None
    )
