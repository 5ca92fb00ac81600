"""Sequences of tokens as the prefix tree meets them."""

from collections.abc import Hashable, Sequence
from typing import Protocol, Self

import numpy as np


class TokenSequence(Protocol):
    """A sequence of tokens as the tree needs it; real ids in the engine, synthetic runs in the simulator."""

    def __len__(self) -> int: ...
    def cut(self, start: int, end: int) -> Self:
        """Tokens `start..end-1`."""
        ...

    def head(self, start: int, n: int) -> Hashable:
        """A key equal for equal `n` tokens from `start`."""
        ...

    def common(self, start: int, other: Self) -> int:
        """How many tokens from `start` on agree with the beginning of `other`."""
        ...

    def extended(self, ids: Sequence[int]) -> Self:
        """These tokens followed by `ids`."""
        ...


class TokenIds:
    """Tokens that are real ids (int32)."""

    __slots__ = ("ids",)

    def __init__(self, ids: "Sequence[int] | np.ndarray"):
        self.ids = np.asarray(ids, np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, end: int) -> "TokenIds":
        return TokenIds(self.ids[start:end])

    def head(self, start: int, n: int) -> bytes:
        return self.ids[start : start + n].tobytes()

    def common(self, start: int, other: "TokenIds") -> int:
        mine = self.ids[start : start + len(other)]
        differ = np.flatnonzero(mine != other.ids[: len(mine)])
        return int(differ[0]) if len(differ) else len(mine)

    def extended(self, ids: Sequence[int]) -> "TokenIds":
        return TokenIds(np.concatenate([self.ids, np.asarray(ids, np.int32)]))
