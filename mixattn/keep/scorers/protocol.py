"""What a scorer reads and what it says.

A scorer holds no arrays. Of a prompt it may gather votes in each layer that reads the keys (`votes`); when
the prompt is cut, `settled` makes a number for each key of them, which travels with the key; a decode step
updates it from the step's weights (`stepped`), and `worth` ranks the keys from it. All defaults do nothing,
so that a scorer is as long as its idea.

Axes: B rows, T queries, S keys, N query heads, K key/value heads, H head size.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mixattn.spec import ModelConfig
from pallas_kernels import heavy_hitter

ALL = -1  # a scorer reads every query


class Prompt(NamedTuple):
    """One layer's view of a prompt.

    Attributes:
      q_BTNH: queries, rotated; lse_BTN: the log-sum-exp of their scores. q_pos_BT: -1 for padding.
      k_BSKH, v_BSKH: keys, rotated, and values. k_pos_BS: -1 for padding.
      scale, softcap: of the attention.
      config: of the model.
    """

    q_BTNH: jax.Array
    lse_BTN: jax.Array
    q_pos_BT: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    k_pos_BS: jax.Array
    scale: float | None
    softcap: float | None
    config: ModelConfig


@dataclass(frozen=True)
class Scorer:
    """The defaults. Fields with the names of `Keep`'s are filled from it.

    Attributes:
      queries: how many of a prompt's last queries `votes` reads: 0, a number, or ALL.
      default_sinks: first positions that are never evicted unless `Keep.sinks` says otherwise.
      decodes: whether `worth` can rank keys that entered after the prompt.
    """

    queries: ClassVar[int] = 0
    default_sinks: ClassVar[int] = 0
    decodes: ClassVar[bool] = True

    @property
    def protects(self) -> int:
        """Newest keys that stay whatever `Keep.recent` says."""
        return 1

    @property
    def reads(self) -> int:
        """`queries`, where it depends on a field."""
        return self.queries

    def votes(self, prompt: Prompt) -> jax.Array:
        """votes_BKS of one layer's queries; those of all layers in scope are added.

        The default is column sums.
        """
        return heavy_hitter.column_sums(
            prompt.q_BTNH,
            prompt.k_BSKH,
            prompt.lse_BTN,
            scale=prompt.scale,
            softcap=prompt.softcap,
            q_pos_BT=prompt.q_pos_BT,
            k_pos_BS=prompt.k_pos_BS,
        )

    def settled(self, votes_BKS: jax.Array, position_BKS: jax.Array) -> jax.Array:
        """score_BKS of a prompt's keys, from their votes (0 if `queries` is 0)."""
        return votes_BKS

    def stepped(self, score_BKR: jax.Array, weights_BKR: jax.Array) -> jax.Array:
        """The scores after a decode step, from the attention that each key received in it."""
        return score_BKR

    def worth(
        self, score_BKR: jax.Array, k_BKRH: jax.Array, position_BKR: jax.Array, layer: int
    ) -> jax.Array:
        """worth_BKR: what ranks the keys. Empty slots have negative positions, and any worth."""
        return score_BKR


def newest(position_BKR: jax.Array) -> jax.Array:
    """Position of the newest key of each head, [B, K, 1]."""
    return jnp.max(position_BKR, axis=-1, keepdims=True)


def made(kind: type[Scorer], **fields: Any) -> Scorer:
    """A scorer with those of the fields that it has."""
    return kind(**{name: fields[name] for name in kind.__dataclass_fields__ if name in fields})
