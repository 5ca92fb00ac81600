"""Prompts without token ids: a prompt is a sequence of named segments (key, length).

Two segments of the same key agree token for token up to the shorter length. Segments of different keys never
agree. So `(("system", 3000), ("question-17", 60))` is a prompt of 3060 tokens that shares 3000 with every
prompt that begins with the same system segment. No token list is ever built.
"""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate
from typing import Self

type TokenSegment = tuple[Hashable, int]


class SyntheticTokens:
    """A `serving.kvcache.tokens.TokenSequence`: a view of tokens `start..end-1` of shared segments."""

    __slots__ = ("_begins", "_end", "_segments", "_start")

    def __init__(self, segments: Iterable[TokenSegment]):
        # An empty segment would hide a border between its neighbours.
        self._segments: Sequence[TokenSegment] = tuple(segment for segment in segments if segment[1])
        self._begins = [0, *accumulate(length for _, length in self._segments)]
        self._start, self._end = 0, self._begins[-1]

    def __len__(self) -> int:
        return self._end - self._start

    def cut(self, start: int, end: int) -> Self:
        part = type(self).__new__(type(self))
        part._segments, part._begins = self._segments, self._begins
        part._start = min(self._start + start, self._end)
        part._end = min(self._start + end, self._end)
        return part

    def head(self, start: int, n: int) -> Hashable:
        at = self._start + start
        end = min(at + n, self._end)
        if at >= end:
            return ()
        begins = self._begins
        i = bisect_right(begins, at) - 1
        if end <= begins[i + 1]:  # the common case: within one segment
            return ((self._segments[i][0], at - begins[i], end - at),)
        return tuple(self.pieces(at, end))

    def common(self, start: int, other: "SyntheticTokens") -> int:
        first = at = self._start + start
        theirs, end, other_end = other._start, self._end, other._end
        while at < end and theirs < other_end:
            key, offset, left = self._at(at)
            other_key, other_offset, other_left = other._at(theirs)
            if offset != other_offset or key != other_key:
                break
            step = left if left < other_left else other_left
            at, theirs = at + step, theirs + step
        return min(at, end, first + other_end - other._start) - first

    def extended(self, ids: Sequence[int]) -> "SyntheticTokens":
        pieces = list(self.pieces(self._start, self._end))
        if any(offset for _, offset, _ in pieces):
            raise ValueError("only a whole prompt can be extended, not a part that begins inside a segment")
        return SyntheticTokens(
            [(key, length) for key, _, length in pieces] + [((id, at), 1) for at, id in enumerate(ids)]
        )

    def _at(self, position: int) -> tuple[Hashable, int, int]:
        """Key of the segment at an absolute position, the offset in it, and its remaining tokens."""
        i = bisect_right(self._begins, position) - 1
        return self._segments[i][0], position - self._begins[i], self._begins[i + 1] - position

    def pieces(self, at: int, end: int) -> Iterable[tuple[Hashable, int, int]]:
        """(key, offset in its segment, length) of each part of a segment between two absolute positions."""
        while at < end:
            key, offset, left = self._at(at)
            step = min(left, end - at)
            yield key, offset, step
            at += step
