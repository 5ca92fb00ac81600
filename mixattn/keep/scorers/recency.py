"""The newest keys, with or without the first ones: a sliding window, and StreamingLLM (arXiv 2309.17453)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from mixattn.keep.scorers.protocol import Scorer


@dataclass(frozen=True)
class Recent(Scorer):
    """The newest keys. They were seen by the layers below with more context than a sliding model has."""

    def worth(
        self, score_BKR: jax.Array, k_BKRH: jax.Array, position_BKR: jax.Array, layer: int
    ) -> jax.Array:
        return position_BKR.astype(jnp.float32)


@dataclass(frozen=True)
class Streaming(Recent):
    """The newest keys and four sinks."""

    default_sinks: ClassVar[int] = 4
