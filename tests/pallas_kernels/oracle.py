"""Attention in float64 numpy, one query at a time: short enough to check against the papers by eye.

Every backend of every op is compared with this file, within the tolerances below.
"""

import numpy as np

# Largest absolute error allowed for outputs of unit-normal inputs, by dtype of the inputs.
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2}
# Log-sum-exps are float32 for every input dtype, but bfloat16 queries are scaled in bfloat16.
LSE_TOLERANCE = {"float32": 5e-6, "bfloat16": 3e-2}
# Gradients sum over queries and keys.
GRADIENT_TOLERANCE = {"float32": 3e-5, "bfloat16": 1.5e-1}


def attend_one(q_H, k_SH, v_SH, seen_S, *, scale, softcap):
    """One query over the keys it sees: (out_H, lse, weight_S)."""
    if not seen_S.any():
        return np.zeros_like(q_H), -np.inf, np.zeros(len(k_SH))
    score_S = np.where(seen_S, k_SH @ q_H * scale, 0.0)
    if softcap is not None:
        score_S = softcap * np.tanh(score_S / softcap)
    top = score_S[seen_S].max()
    weight_S = np.where(seen_S, np.exp(score_S - top), 0.0)
    lse = top + np.log(weight_S.sum())
    weight_S = weight_S / weight_S.sum()
    return weight_S @ np.where(seen_S[:, None], v_SH, 0.0), lse, weight_S


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    window=None,
    causal=True,
    scale=None,
    softcap=None,
    q_pos_BT=None,
    k_pos_BS=None,
    segment_q_BT=None,
    segment_k_BS=None,
):
    """The definition: (out_BTNH, lse_BTN, weight_BTNS), all float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    (B, T, N, H), (_, S, K, _) = q.shape, k.shape
    if q_pos_BT is None:
        k_pos_BS = np.tile(np.arange(S), (B, 1))
        q_pos_BT = k_pos_BS[:, S - T :]
    out, lse, weight = np.zeros((B, T, N, H)), np.zeros((B, T, N)), np.zeros((B, T, N, S))
    for b, t, n in np.ndindex(B, T, N):
        age_S = q_pos_BT[b, t] - k_pos_BS[b]
        seen_S = k_pos_BS[b] >= 0
        if causal:
            seen_S &= (age_S >= 0) & (age_S < (np.inf if window is None else window))
        if segment_q_BT is not None:
            seen_S &= segment_q_BT[b, t] == segment_k_BS[b]
        head = n // (N // K)
        out[b, t, n], lse[b, t, n], weight[b, t, n] = attend_one(
            q[b, t, n],
            k[b, :, head],
            v[b, :, head],
            seen_S,
            scale=H**-0.5 if scale is None else scale,
            softcap=softcap,
        )
    return out, lse, weight


def gradients(q_BTNH, k_BSKH, v_BSKH, dout_BTNH, dlse_BTN, *, scale=None, softcap=None, **options):
    """Cotangents of q, k, v for those of out and log-sum-exp, from the definition's weights, in float64."""
    q, k, v, dout, dlse = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH, dout_BTNH, dlse_BTN))
    out, _, weight = attention(q, k, v, scale=scale, softcap=softcap, **options)
    G = q.shape[2] // k.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    k_BSNH, v_BSNH = (np.repeat(x, G, axis=2) for x in (k, v))
    dweight = np.einsum("btnh,bsnh->btns", dout, v_BSNH)
    dscore = weight * (dweight - np.sum(out * dout, axis=-1)[..., None] + dlse[..., None])
    if softcap is not None:
        score = np.einsum("btnh,bsnh->btns", q, k_BSNH) * scale
        dscore *= 1 - np.tanh(score / softcap) ** 2
    dscore *= scale

    def by_kv_head(x_BSNH):
        return x_BSNH.reshape(*x_BSNH.shape[:2], -1, G, x_BSNH.shape[3]).sum(axis=3)

    dk = by_kv_head(np.einsum("btns,btnh->bsnh", dscore, q))
    dv = by_kv_head(np.einsum("btns,btnh->bsnh", weight, dout))
    return np.einsum("btns,bsnh->btnh", dscore, k_BSNH), dk, dv


def paged(batch, *, window=None, scale=None, softcap=None):
    """The definition over a `paged_cases.Batch`: (out_BCNH, lse_BCN, weight_BCNS), all float64."""
    B, C = batch.q_BCNH.shape[:2]
    S = batch.k_BSKH.shape[1]
    asked = np.arange(C)[None] < batch.count_B[:, None]
    q_pos_BC = np.where(asked, batch.start_B[:, None] + np.arange(C)[None], -1)
    k_pos_BS = np.tile(np.arange(S), (B, 1))
    return attention(
        batch.q_BCNH,
        batch.k_BSKH,
        batch.v_BSKH,
        window=window,
        scale=scale,
        softcap=softcap,
        q_pos_BT=q_pos_BC,
        k_pos_BS=k_pos_BS,
    )
