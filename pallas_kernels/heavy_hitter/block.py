"""Several queries of a row at once against its slab, for prompts that are cut block by block.

Axes: B rows, T queries, N query heads, K key/value heads, G = N // K, H head size, R slots.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import attention
from pallas_kernels.heavy_hitter import Slab, column_sums


def attend_block(
    q_BTNH: jax.Array,
    slab: Slab,
    position_BT: jax.Array,
    *,
    voting_BT: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attends with several queries per row, each to the slab's keys up to its own position.

    Args:
      position_BT: negative = padding.
      voting_BT: queries whose attention is summed; None = all.

    Returns:
      out_BTNH, and sums_BKR, float32: the attention of the voting queries to each key.
    """
    B, T, N, H = q_BTNH.shape
    K, R = slab.position_BKR.shape[1:]

    def by_head(x_BTKX: jax.Array) -> jax.Array:
        """[B K, T, G, H]: every key/value head is a row, since positions differ by head."""
        return jnp.moveaxis(x_BTKX.reshape(B, T, K, -1, H), 2, 1).reshape(B * K, T, -1, H)

    keys, values = (x.reshape(B * K, R, 1, H) for x in (slab.k_BKRH, slab.v_BKRH))
    options: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "q_pos_BT": jnp.repeat(position_BT, K, axis=0),
        "k_pos_BS": slab.position_BKR.reshape(B * K, R),
    }
    out, lse = attention(by_head(q_BTNH), keys, values, return_lse=True, **options)
    if voting_BT is not None:
        options["q_pos_BT"] = jnp.repeat(jnp.where(voting_BT, position_BT, -1), K, axis=0)
    sums = column_sums(by_head(q_BTNH), keys, lse, **options)
    out_BTNH = jnp.moveaxis(out.reshape(B, K, T, N // K, H), 1, 2).reshape(B, T, N, H)
    return out_BTNH, sums.reshape(B, K, R)
