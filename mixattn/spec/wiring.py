"""The K/V wiring grammar: which layer computes K/V, which layer reads them, and which attention slides.

One entry per layer, joined by `_`, each `\\d+s?`: the layer whose K/V it reads, `s` if its attention slides.
An entry equal to its own index is an *owner* (it computes and stores K/V); any other is a *reader* (it has no
K/V parameters and no cache).
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """How one layer attends.

    Attributes:
      index: its place in the stack, from the bottom.
      owner: the layer whose K/V it reads; its own index if it owns.
      window: keys a query sees, itself included; None = the whole context.
    """

    index: int
    owner: int
    window: int | None

    @property
    def owns(self) -> bool:
        return self.owner == self.index

    @property
    def slides(self) -> bool:
        """Whether its queries see a window only."""
        return self.window is not None


@functools.cache
def parse_wiring(wiring: str, window: int) -> tuple[Layer, ...]:
    """Reads a wiring string.

    Raises:
      ValueError: a malformed entry, a forward reference, a chain (a read of a reader), or a sliding layer
        that reads a full one's K/V (or the other way round).
    """
    entries = wiring.split("_")
    layers: list[Layer] = []
    for i, entry in enumerate(entries):
        match = re.fullmatch(r"(\d+)(s?)", entry, flags=re.ASCII)
        if match is None:
            raise ValueError(
                f"kv_wiring entry {i} is {entry!r}; it must be a layer index, `s` after it if sliding"
            )
        owner, slides = int(match[1]), bool(match[2])
        if owner > i:
            raise ValueError(f"kv_wiring: layer {i} reads layer {owner}, which comes later")
        if owner < i and not layers[owner].owns:
            raise ValueError(
                f"kv_wiring: layer {i} reads layer {owner}, which itself reads {layers[owner].owner}"
            )
        if owner < i and (layers[owner].window is not None) != slides:
            kinds = ("sliding", "full") if slides else ("full", "sliding")
            raise ValueError(f"kv_wiring: {kinds[0]} layer {i} reads the K/V of {kinds[1]} layer {owner}")
        layers.append(Layer(i, owner, window if slides else None))
    return tuple(layers)
