"""The K/V wiring grammar: which layers compute K/V, which layers read them, and which use a sliding window.

A wiring has one entry per layer, joined by `_`, each `\\d+s?`: the layer whose K/V it reads, then `s` for a
sliding window. A layer that reads its own K/V is an *owner*: it computes and stores them. Any other layer is
a *reader*: it has no K/V parameters and no cache.
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """The attention of one layer.

    Attributes:
      index: the layer's index, from the bottom.
      owner: index of the layer whose K/V it reads; its own index if it is an owner.
      window: number of keys that a query attends to, including its own; None = the full context.
      sinks: positions at the start of a sequence that a sliding layer's queries see beside the window.
    """

    index: int
    owner: int
    window: int | None
    sinks: int = 0

    @property
    def owns(self) -> bool:
        """Whether the layer computes and stores its own K/V."""
        return self.owner == self.index

    @property
    def slides(self) -> bool:
        """Whether its queries attend to a window only."""
        return self.window is not None


@functools.cache
def parse_wiring(wiring: str, window: int, sinks: int = 0) -> tuple[Layer, ...]:
    """Parses a wiring string.

    Raises:
      ValueError: a malformed entry, a forward reference, a chain (a layer that reads a reader), a sliding
        layer that reads a full layer's K/V, or the reverse.
    """
    entries = wiring.split("_")
    layers: list[Layer] = []
    for i, entry in enumerate(entries):
        match = re.fullmatch(r"(\d+)(s?)", entry, flags=re.ASCII)
        if match is None:
            raise ValueError(
                f"kv_wiring entry {i} is {entry!r}; it must be a layer index, followed by `s` if sliding"
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
        layers.append(Layer(i, owner, window, sinks) if slides else Layer(i, owner, None))
    return tuple(layers)
