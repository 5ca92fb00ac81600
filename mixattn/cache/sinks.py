"""Attention of a sliding layer that also sees the first positions of its sequence (attention sinks).

A query's window and the sinks before it are disjoint sets of keys, so that two calls of the attention op and
their log-sum-exps give the exact softmax over both, on every backend. Sinks are not in the MixAttention
paper; they are StreamingLLM's (arXiv 2309.17453), with keys rotated by their own positions.

Axes: B rows, T queries, S keys, N query heads, K key/value heads, H head size.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mixattn.spec import Layer
from pallas_kernels.attention import attention


def attend_layer(
    layer: Layer,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    **mask: Any,
) -> jax.Array:
    """out_BTNH of the layer's queries within its window, and over its sinks.

    Args:
      mask: positions and segments, as `attention` takes them. Sinks are the positions 0 to sinks - 1, and of
        a segment its first tokens.

    Raises:
      ValueError: sinks with positions and segments together.
    """
    options: dict[str, Any] = {"scale": scale, "softcap": softcap}
    if not layer.sinks or layer.window is None:
        return attention(q_BTNH, k_BSKH, v_BSKH, window=layer.window, **options, **mask)
    near = attention(q_BTNH, k_BSKH, v_BSKH, window=layer.window, return_lse=True, **options, **mask)
    keys, values, far_mask = _sink_keys(layer, q_BTNH.shape[1], k_BSKH, v_BSKH, mask)
    far = attention(q_BTNH, keys, values, return_lse=True, **options, **far_mask)
    return _merged(near, far)


def _sink_keys(
    layer: Layer, T: int, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: dict[str, Any]
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Keys, values and mask of the sinks that have left the window of each query.

    A query at q sees the sink k outside its window iff q - k >= W: causal attention of a query at q - W.
    """
    assert layer.window is not None
    B, S = k_BSKH.shape[:2]
    if "q_pos_BT" in mask and "segment_q_BT" in mask:
        raise ValueError("sinks with both positions and segments; give one of them")
    if "q_pos_BT" in mask:
        pos_BS = mask["k_pos_BS"]
        shifted = {"q_pos_BT": mask["q_pos_BT"] - layer.window}
        return k_BSKH, v_BSKH, shifted | {"k_pos_BS": jnp.where(pos_BS < layer.sinks, pos_BS, -1)}
    q_pos_1T = (jnp.arange(S - T, S) - layer.window)[None]
    shifted = {"q_pos_BT": jnp.broadcast_to(q_pos_1T, (B, T))}
    if "segment_q_BT" not in mask:
        sinks = min(layer.sinks, S)
        k_pos_BS = jnp.broadcast_to(jnp.arange(sinks)[None], (B, sinks))
        return k_BSKH[:, :sinks], v_BSKH[:, :sinks], shifted | {"k_pos_BS": k_pos_BS}
    k_pos_BS = jnp.where(_index_in_segment(mask["segment_k_BS"]) < layer.sinks, jnp.arange(S)[None], -1)
    return k_BSKH, v_BSKH, mask | shifted | {"k_pos_BS": k_pos_BS}


def _index_in_segment(segment_BS: jax.Array) -> jax.Array:
    """How many tokens of its segment come before each token; segments are contiguous."""
    pos_1S = jnp.arange(segment_BS.shape[1])[None]
    begins_BS = segment_BS != jnp.pad(segment_BS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    return pos_1S - jax.lax.cummax(jnp.where(begins_BS, pos_1S, 0), axis=1)


def _merged(near: tuple[jax.Array, jax.Array], far: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The attention over two disjoint sets of keys, from the output and the log-sum-exp over each."""
    (near_BTNH, near_lse_BTN), (far_BTNH, far_lse_BTN) = near, far
    empty_BTN = jnp.isneginf(far_lse_BTN) | jnp.isneginf(near_lse_BTN)
    # Where a set is empty, its infinity must not reach the gradient of the other's branch.
    difference_BTN = jnp.where(empty_BTN, 0, far_lse_BTN) - jnp.where(empty_BTN, 0, near_lse_BTN)
    share_BTN = jnp.where(empty_BTN, jnp.isneginf(near_lse_BTN).astype(difference_BTN.dtype), 0)
    share_BTN = jnp.where(empty_BTN, share_BTN, jax.nn.sigmoid(difference_BTN))
    share_BTN1 = share_BTN[..., None].astype(near_BTNH.dtype)
    return (1 - share_BTN1) * near_BTNH + share_BTN1 * far_BTNH
