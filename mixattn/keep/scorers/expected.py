"""Expected attention: what queries to come will pay, if they are distributed as those of the prompt.

Queries before rotation are taken as Gaussian; a future query is such a one, rotated to a position within the
next `AHEAD`. The expectation of exp(score) is then closed: exp(mean + variance / 2) of the score. Normalised
over the keys and multiplied by the norm of the value, as in the paper. Cuts the prompt once.

Source: arXiv 2510.00636, section 3. Axes: B rows, T queries, S keys, N query heads, K key/value heads, G = N
  // K,
H and I head size.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from mixattn.keep.scorers.protocol import ALL, Prompt, Scorer
from mixattn.rope import RopeTable, apply_rope, attention_factor, rope_cos_sin, rope_frequencies
from mixattn.spec import ModelConfig

LOW = -1e30  # a score that gets no weight, also where no key gets any
AHEAD = 512  # positions over which a future query is spread


@dataclass(frozen=True)
class Expected(Scorer):
    """Softmax of the expected scores, times the norm of the value.

    Attributes:
      sinks: first positions, whose queries are outliers and whose keys stay; they are left out of both.
    """

    queries: ClassVar[int] = ALL
    default_sinks: ClassVar[int] = 4
    decodes: ClassVar[bool] = False
    sinks: int = 4

    def votes(self, prompt: Prompt) -> jax.Array:
        (B, _, N, H), K = prompt.q_BTNH.shape, prompt.k_BSKH.shape[2]
        real_BT11 = (prompt.q_pos_BT >= self.sinks)[:, :, None, None]
        count_B11 = jnp.maximum(jnp.sum(real_BT11, axis=1), 1).astype(jnp.float32)
        q_BTNH = jnp.where(real_BT11, unrotated(prompt.q_BTNH.astype(jnp.float32), prompt), 0)
        mean_BNH = jnp.sum(q_BTNH, axis=1) / count_B11
        off_BTNH = jnp.where(real_BT11, q_BTNH - mean_BNH[:, None], 0)
        spread_BNHI = jnp.einsum("BTNH,BTNI->BNHI", off_BTNH, off_BTNH) / count_B11[..., None]
        turn_BHI = _mean_rotation(prompt, H)
        mean_BNH = jnp.einsum("BHI,BNI->BNH", turn_BHI, mean_BNH)
        spread_BNHI = jnp.einsum("BHJ,BNJL,BIL->BNHI", turn_BHI, spread_BNHI, turn_BHI)
        scale = H**-0.5 if prompt.scale is None else prompt.scale
        k_BSKH = prompt.k_BSKH.astype(jnp.float32)
        mean_BKGH = mean_BNH.reshape(B, K, N // K, H)
        spread_BKGHI = spread_BNHI.reshape(B, K, N // K, H, H)
        score_BKGS = scale * jnp.einsum("BKGH,BSKH->BKGS", mean_BKGH, k_BSKH)
        score_BKGS += scale**2 / 2 * jnp.einsum("BSKH,BKGHI,BSKI->BKGS", k_BSKH, spread_BKGHI, k_BSKH)
        seen_BS = prompt.k_pos_BS >= self.sinks
        weight_BKGS = jax.nn.softmax(jnp.where(seen_BS[:, None, None], score_BKGS, LOW), axis=-1)
        value_BSK = jnp.linalg.norm(prompt.v_BSKH.astype(jnp.float32), axis=-1)
        return jnp.mean(weight_BKGS, axis=2) * jnp.moveaxis(value_BSK, 1, 2)


def unrotated(q_BTNH: jax.Array, prompt: Prompt) -> jax.Array:
    """The queries as they were before their rotation."""
    table = rotation(prompt.config, -jnp.maximum(prompt.q_pos_BT, 0))
    return q_BTNH if table is None else apply_rope(q_BTNH, table) / attention_factor(prompt.config)


def rotation(config: ModelConfig, positions_BT: jax.Array) -> RopeTable | None:
    """The rotation of full layers by positions that may be negative, without the factor of some scalings."""
    if config.positions != "rope":
        return None
    freq_R = rope_frequencies(config, sliding=False, length=config.rope_length)
    return rope_cos_sin(positions_BT, freq_R.astype("float32"))


def _mean_rotation(prompt: Prompt, H: int) -> jax.Array:
    """turn_BHI: the mean of the rotations to the next `AHEAD` positions, as a matrix."""
    end_B1 = jnp.max(prompt.k_pos_BS, axis=1, keepdims=True) + 1
    B = end_B1.shape[0]
    table = rotation(prompt.config, end_B1 + jnp.arange(AHEAD)[None])
    eye_BHI = jnp.broadcast_to(jnp.eye(H), (B, H, H))
    if table is None:
        return eye_BHI
    factor = attention_factor(prompt.config)
    cos, sin = (jnp.mean(x, axis=1, keepdims=True) * factor for x in table)
    # Rows of the identity are rotated one by one: row I becomes column I of the rotation.
    return jnp.swapaxes(apply_rope(eye_BHI[:, None], (cos, sin))[:, 0], 1, 2)
