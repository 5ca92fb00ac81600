"""Memory as a count of tokens: what the fairness experiments of the papers assume, and fast.

Stands where `PagedMemory` does (see `serving.engine.plan.Memory`); no pages, no prefix cache. Three rules
decide whether a request may start:

    reserve     prompts and longest possible outputs of all running requests fit
    peak        the largest footprint the running requests can reach together fits (as requests that finish
                make room for those that grow); nobody is ever preempted, and yet VTC's 2U does not hold
    optimistic  the prompt fits now; growth that finds no room preempts somebody
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.kvcache.tokens import TokenSequence
from serving.request import RequestId

type Admission = Literal["reserve", "peak", "optimistic"]
ADMISSIONS: tuple[Admission, ...] = ("reserve", "peak", "optimistic")


@dataclass(eq=False, slots=True)
class TokenReservation:
    """Tokens one running request holds, and the most it ever may."""

    held_tok: int
    final_tok: int
    slot: int = 0


class TokenMemory:
    def __init__(self, capacity_tok: int, *, admission: Admission = "reserve", max_slots: int = 1000):
        if capacity_tok < 1 or max_slots < 1:
            raise ValueError(
                f"memory of {capacity_tok} tokens for {max_slots} requests; both must be at least 1"
            )
        if admission not in ADMISSIONS:
            raise ValueError(f"unknown admission {admission!r}; known: {', '.join(ADMISSIONS)}")
        self.capacity_tok, self.admission, self.max_slots = capacity_tok, admission, max_slots
        self.shares: dict[int, TokenReservation] = {}
        self.held_tok = self.final_tok = 0

    @property
    def slots_free(self) -> int:
        return self.max_slots - len(self.shares)

    def never_fits(self, final_tok: int) -> str | None:
        if final_tok <= self.capacity_tok:
            return None
        return f"needs {final_tok} tokens of memory, of which there are {self.capacity_tok}"

    def admit(
        self, tokens: TokenSequence, cache_salt: Hashable, final_tok: int, *, reserve: bool
    ) -> tuple[TokenReservation, int] | None:
        share = TokenReservation(len(tokens), final_tok)
        if not self.slots_free or not self._fits(share):
            return None
        self.shares[id(share)] = share
        self.held_tok += share.held_tok
        self.final_tok += final_tok
        return share, 0

    def _fits(self, new: TokenReservation) -> bool:
        if self.admission == "reserve":
            return self.final_tok + new.final_tok <= self.capacity_tok
        if self.held_tok + new.held_tok > self.capacity_tok:
            return False
        return self.admission == "optimistic" or self._peak(new) <= self.capacity_tok

    def _peak(self, new: TokenReservation) -> int:
        """The most held at once if everybody decodes to the end in step: when the k-th last finishes,
        the k longest-running have each grown by what is left of it."""
        left = sorted(
            ((s.final_tok - s.held_tok, s.held_tok) for s in (*self.shares.values(), new)), reverse=True
        )
        peak = held = 0
        for count, (more, now) in enumerate(left, 1):
            held += now
            peak = max(peak, held + count * more)
        return peak

    def grow(self, kv: TokenReservation, computed_tok: int, upto_tok: int) -> bool:
        more = upto_tok - kv.held_tok
        if more > 0:
            if self.held_tok + more > self.capacity_tok:
                return False
            kv.held_tok = upto_tok
            self.held_tok += more
        return True

    def no_growth_until_tok(self, kv: TokenReservation) -> float:
        """See `PagedMemory`. Where everything is reserved, growth need not be counted."""
        return math.inf if self.admission == "reserve" else 0

    def computed(
        self, kv: TokenReservation, tokens: TokenSequence, computed_tok: int, *, share: bool
    ) -> None:
        pass

    def release(self, kv: TokenReservation) -> None:
        del self.shares[id(kv)]
        self.held_tok -= kv.held_tok
        self.final_tok -= kv.final_tok

    # No prefix cache: nothing ever matches.

    def match(self, tokens: TokenSequence, cache_salt: Hashable) -> int:
        return 0

    def watch(self, id: RequestId, tokens: TokenSequence, cache_salt: Hashable) -> int:
        return 0

    def unwatch(self, id: RequestId) -> None:
        pass

    def touched(self) -> list[RequestId] | None:
        return []

    def clear_cache(self) -> None:
        pass

    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> Sequence[Hashable]:
        return ()
