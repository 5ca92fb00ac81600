"""Attention in plain XLA: the CPU's body and everybody's fallback.

Two shapes of work. `_dense` scores every query against every key. `_banded` takes over when a window makes
most of those pairs invisible and positions are the plain 0..S-1: queries in blocks, each against the few key
blocks its window reaches, so that time and memory grow with T·W. In both, the G query heads of one
key/value head are folded into the rows of the score product, where matrix units like them.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.masks import visible
from pallas_kernels.precision import accumulator


def refuses(ask) -> str | None:
    return None


def attention(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    window,
    causal,
    scale,
    softcap,
    q_pos_BT,
    k_pos_BS,
    segment_q_BT,
    segment_k_BS,
):
    """Returns out_BTNH and lse_BTN."""
    (B, T, N, H), (_, S, K, _) = q_BTNH.shape, k_BSKH.shape
    wide = accumulator(q_BTNH.dtype)
    # [B, K, T, G, H]: one key/value head's queries lie together.
    q_BKTGH = jnp.moveaxis((q_BTNH * jnp.asarray(scale, q_BTNH.dtype)).reshape(B, T, K, N // K, H), 2, 1)
    k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 2, 1), jnp.moveaxis(v_BSKH, 2, 1)
    plain = q_pos_BT is None
    if plain and window is not None and T > 1 and 2 * window < S:
        out_BKTGH, lse_BKTG = _banded(
            q_BKTGH, k_BKSH, v_BKSH, window, softcap, segment_q_BT, segment_k_BS, wide
        )
    else:
        keep_BTS = _keep(B, T, S, window, causal, q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS)
        out_BKTGH, lse_BKTG = _softmax_rows(q_BKTGH, k_BKSH, v_BKSH, keep_BTS[:, None], softcap, wide)
    out_BTNH = jnp.moveaxis(out_BKTGH, 1, 2).reshape(B, T, N, H).astype(q_BTNH.dtype)
    return out_BTNH, jnp.moveaxis(lse_BKTG, 1, 2).reshape(B, T, N)


def _keep(B, T, S, window, causal, q_pos_BT, k_pos_BS, segment_q_BT, segment_k_BS):
    """Which keys each query sees: bool [B or 1, T, S]."""
    if q_pos_BT is None:
        q_pos_BT, k_pos_BS = jnp.arange(S - T, S)[None], jnp.arange(S)[None]
    age_BTS = q_pos_BT[:, :, None] - k_pos_BS[:, None, :]
    keep_BTS = jnp.broadcast_to((k_pos_BS >= 0)[:, None], age_BTS.shape)
    if causal:
        keep_BTS &= visible(age_BTS, window)
    if segment_q_BT is not None:
        keep_BTS = keep_BTS & (segment_q_BT[:, :, None] == segment_k_BS[:, None, :])
    return keep_BTS


def _softmax_rows(q_XTGH, k_XSH, v_XSH, keep_XTS, softcap, wide):
    """Softmax attention of T·G rows over S keys; the leading axes X are batch axes (1 broadcasts in keep)."""
    *X, T, G, H = q_XTGH.shape
    S = k_XSH.shape[-2]
    rows = (*X, T * G, H)
    score_XRS = jnp.einsum("...RH,...SH->...RS", q_XTGH.reshape(rows), k_XSH, preferred_element_type=wide)
    if softcap is not None:
        score_XRS = softcap * jnp.tanh(score_XRS / softcap)
    score_XTGS = score_XRS.reshape(*X, T, G, S)
    score_XTGS = jnp.where(keep_XTS[..., None, :], score_XTGS, -jnp.inf)
    # A row that sees nothing has maximum -inf; 0 in its place keeps exp and its gradient finite.
    top_XTG1 = lax.stop_gradient(jnp.max(score_XTGS, axis=-1, keepdims=True))
    top_XTG1 = jnp.where(jnp.isfinite(top_XTG1), top_XTG1, 0)
    weight_XTGS = jnp.exp(score_XTGS - top_XTG1)
    total_XTG1 = jnp.sum(weight_XTGS, axis=-1, keepdims=True)
    seen_XTG1 = total_XTG1 > 0
    total_XTG1 = jnp.where(seen_XTG1, total_XTG1, 1)
    weight_XRS = weight_XTGS.reshape(*X, T * G, S).astype(v_XSH.dtype)
    out_XRH = jnp.einsum("...RS,...SH->...RH", weight_XRS, v_XSH, preferred_element_type=wide)
    lse_XTG = jnp.where(seen_XTG1, top_XTG1 + jnp.log(total_XTG1), -jnp.inf)[..., 0]
    return out_XRH.reshape(*X, T, G, H) / total_XTG1, lse_XTG


def _banded(q_BKTGH, k_BKSH, v_BKSH, window, softcap, segment_q_BT, segment_k_BS, wide):
    """Blocks of queries against the `back + 1` key blocks that hold everything their windows reach."""
    B, K, T, G, H = q_BKTGH.shape
    S = k_BKSH.shape[2]
    block = min(window, 256) if window > 1 else 16
    n, back = -(-T // block), -(-(window - 1) // block)
    lead = back * block - (S - T)  # rows put before key 0 (negative: keys nobody sees are cut)

    def align(x, axis, fill=0):
        cut = lax.slice_in_dim(x, max(-lead, 0), None, axis=axis)
        pad = [(0, 0)] * x.ndim
        pad[axis] = (max(lead, 0), n * block - T)
        return jnp.pad(cut, pad, constant_values=fill)

    def windows(x, axis):
        """Splits `axis` into n overlapping stretches of (back + 1) blocks."""
        x = x.reshape(*x.shape[:axis], n + back, block, *x.shape[axis + 1 :])
        parts = [lax.slice_in_dim(x, j, j + n, axis=axis) for j in range(back + 1)]
        return jnp.concatenate(parts, axis=axis + 1)

    q_BKnTGH = jnp.pad(q_BKTGH, ((0, 0), (0, 0), (0, n * block - T), (0, 0), (0, 0)))
    q_BKnTGH = q_BKnTGH.reshape(B, K, n, block, G, H)
    k_BKnSH, v_BKnSH = windows(align(k_BKSH, 2), 2), windows(align(v_BKSH, 2), 2)
    row_T, column_S = jnp.arange(block), jnp.arange((back + 1) * block)
    key_nS = jnp.arange(n)[:, None] * block + column_S[None, :] - lead
    seen_TS = visible(back * block + row_T[:, None] - column_S[None, :], window)
    keep_BKnTS = (seen_TS[None] & ((key_nS >= 0) & (key_nS < S))[:, None])[None, None]
    if segment_q_BT is not None:
        segment_q_BnT = jnp.pad(segment_q_BT, ((0, 0), (0, n * block - T))).reshape(B, n, block)
        segment_k_BnS = windows(align(segment_k_BS, 1), 1)
        keep_BKnTS = keep_BKnTS & (segment_q_BnT[:, None, :, :, None] == segment_k_BnS[:, None, :, None, :])
    out, lse = _softmax_rows(q_BKnTGH, k_BKnSH, v_BKnSH, keep_BKnTS, softcap, wide)
    return out.reshape(B, K, n * block, G, H)[:, :, :T], lse.reshape(B, K, n * block, G)[:, :, :T]
