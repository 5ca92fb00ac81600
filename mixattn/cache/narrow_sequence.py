"""Complete sequences whose K/V went through a narrower type, to measure what that type costs."""

import dataclasses
import functools
from typing import Self

import jax

from mixattn.cache import narrow
from mixattn.cache.protocol import FullSequence
from mixattn.spec import Layer


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["kv", "pos_BT", "segment_BT"], meta_fields=["stored"]
)
@dataclasses.dataclass(frozen=True)
class NarrowSequence(FullSequence):
    """A complete sequence whose K/V have been stored in `stored` and read again."""

    stored: str = "bfloat16"

    def write(self, layer: Layer, k_BTKH: jax.Array, v_BTKH: jax.Array) -> Self:
        read = (narrow.widened(narrow.narrowed(x, self.stored), x.dtype) for x in (k_BTKH, v_BTKH))
        k, v = read
        return super().write(layer, k, v)
