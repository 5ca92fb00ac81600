"""Device side of a toy KV kind: position p lies in slot p modulo the budget of slots."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mixattn.cache.protocol import slot_positions, step_positions
from pallas_kernels import paged
from pallas_kernels.attention import attention


@dataclass(frozen=True)
class RingPages:
    """Takes the sliding layers; `slots` per row, enough for the window, a step's tokens and one page."""

    slots: int
    name: str = "ring"

    def matches(self, layer) -> bool:
        return layer.slides

    def init(self, config, layer, pages, page_size, dtype) -> paged.Pool:
        return paged.init(pages, page_size, config.n_kv_heads, config.head_dim, dtype, layout="rows")

    def write(self, pool, table_BP, start_B, count_B, k_BTKH, v_BTKH) -> paged.Pool:
        B, T = k_BTKH.shape[:2]
        slot_BT = step_positions(start_B, T) % self.slots
        page_BT = jnp.take_along_axis(table_BP, slot_BT // pool.page_size, axis=1)
        page_BT = jnp.where(jnp.arange(T)[None] < count_B[:, None], page_BT, pool.pages)
        rows = (k_BTKH, v_BTKH, page_BT, slot_BT % pool.page_size)
        return paged.write(pool, *(x.reshape(B * T, *x.shape[2:]) for x in rows))

    def attend(self, pool, table_BP, start_B, count_B, layer, q_BTNH, *, scale, softcap) -> jax.Array:
        k_BPpKH, v_BPpKH = paged.read(pool, table_BP)
        B, T = q_BTNH.shape[:2]
        k_BSKH, v_BSKH = (x.reshape(B, -1, *x.shape[3:]) for x in (k_BPpKH, v_BPpKH))
        return attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            window=layer.window,
            scale=scale,
            softcap=softcap,
            q_pos_BT=step_positions(start_B, T),
            k_pos_BS=slot_positions(start_B + count_B, self.slots),
        )
