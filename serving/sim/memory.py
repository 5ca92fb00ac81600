"""KV memory as a count of tokens, as the fairness experiments of the papers assume.

`TokenMemory` implements `serving.engine.plan.MemoryManager` without pages or a prefix cache. Three rules
decide whether a request may start:

    reserve     the prompts and maximal outputs of all running requests fit
    peak        the largest footprint that the running requests can reach together fits (requests that finish
                free room for those that grow); nothing is ever preempted, but VTC's bound 2U does not hold
    optimistic  the prompt fits now; growth that does not fit preempts a request

With `slab_tok` = k a request holds its prompt while that is computed and min(T, k) tokens from then on, as in
an engine that evicts (`serving.config.KeepSettings`).
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.kvcache.slab_plan import SlabPlan
from serving.kvcache.tokens import TokenSequence
from serving.request import RequestId

type Admission = Literal["reserve", "peak", "optimistic"]
ADMISSIONS: tuple[Admission, ...] = ("reserve", "peak", "optimistic")


@dataclass(eq=False, slots=True)
class TokenReservation:
    """Tokens that one running request holds, and the maximum it may ever hold.

    Attributes:
      prompt_tok: its prompt, or what it computes as one. settled: that is done, and it holds its slab.
    """

    held_tok: int
    final_tok: int
    slot: int = 0
    prompt_tok: int = 0
    settled: bool = False


class TokenMemory:
    """Counts tokens against one capacity; see the module for the admission rules."""

    def __init__(
        self,
        capacity_tok: int,
        *,
        admission: Admission = "reserve",
        max_slots: int = 1000,
        slab_tok: int = 0,
    ):
        if capacity_tok < 1 or max_slots < 1:
            raise ValueError(
                f"memory of {capacity_tok} tokens for {max_slots} requests; both must be at least 1"
            )
        if admission not in ADMISSIONS:
            raise ValueError(f"unknown admission {admission!r}; known: {', '.join(ADMISSIONS)}")
        if slab_tok < 0:
            raise ValueError(f"slab_tok is {slab_tok}; it must be at least 0 (no eviction)")
        self.capacity_tok, self.admission, self.max_slots = capacity_tok, admission, max_slots
        self.slab_tok = slab_tok
        self.reservations: dict[int, TokenReservation] = {}
        self.held_tok = self.final_tok = 0

    @property
    def slots_free(self) -> int:
        return self.max_slots - len(self.reservations)

    def never_fits(self, final_tok: int, settles_tok: int | None = None) -> str | None:
        if self.slab_tok and settles_tok is not None:
            final_tok = max(settles_tok, self._kept_tok(final_tok))
        if final_tok <= self.capacity_tok:
            return None
        return f"needs {final_tok} tokens of memory, of which there are {self.capacity_tok}"

    def admit(
        self,
        tokens: TokenSequence,
        cache_salt: Hashable,
        final_tok: int,
        *,
        reserve: bool,
        plan: SlabPlan | None = None,
    ) -> tuple[TokenReservation, int] | None:
        prompt_tok = len(tokens)
        if self.slab_tok:
            final_tok = max(prompt_tok, self._kept_tok(final_tok))
        reservation = TokenReservation(prompt_tok, final_tok, prompt_tok=prompt_tok)
        if not self.slots_free or not self._fits(reservation):
            return None
        self.reservations[id(reservation)] = reservation
        self.held_tok += reservation.held_tok
        self.final_tok += final_tok
        return reservation, 0

    def _kept_tok(self, tokens: int) -> int:
        """min(T, k)."""
        return min(tokens, self.slab_tok) if self.slab_tok else tokens

    def _fits(self, new: TokenReservation) -> bool:
        if self.admission == "reserve":
            return self.final_tok + new.final_tok <= self.capacity_tok
        if self.held_tok + new.held_tok > self.capacity_tok:
            return False
        return self.admission == "optimistic" or self._peak(new) <= self.capacity_tok

    def _peak(self, new: TokenReservation) -> int:
        """The maximum held at once if all requests decode to their ends in lock-step.

        When the k-th last request finishes, the k longest-running have each grown by what that one had left.
        """
        left = sorted(
            ((s.final_tok - s.held_tok, s.held_tok) for s in (*self.reservations.values(), new)), reverse=True
        )
        peak = held = 0
        for count, (more, now) in enumerate(left, 1):
            held += now
            peak = max(peak, held + count * more)
        return peak

    def grow(self, kv: TokenReservation, computed_tok: int, upto_tok: int) -> bool:
        held_tok = self._kept_tok(upto_tok) if kv.settled else upto_tok
        more = held_tok - kv.held_tok
        if more > 0:
            if self.held_tok + more > self.capacity_tok:
                return False
            kv.held_tok = held_tok
            self.held_tok += more
        return True

    def no_growth_until_tok(self, kv: TokenReservation) -> float:
        """See `KVCacheManager`. Under full reservation growth always fits and is not counted."""
        fixed = kv.settled or not self.slab_tok
        return math.inf if self.admission == "reserve" and fixed else 0

    def computed(
        self, kv: TokenReservation, tokens: TokenSequence, computed_tok: int, *, share: bool
    ) -> None:
        if not self.slab_tok or kv.settled or computed_tok < kv.prompt_tok:
            return
        kv.settled = True
        self.held_tok += self._kept_tok(kv.held_tok) - kv.held_tok
        self.final_tok += self._kept_tok(kv.final_tok) - kv.final_tok
        kv.held_tok, kv.final_tok = self._kept_tok(kv.held_tok), self._kept_tok(kv.final_tok)

    def may_start(self, plan: SlabPlan) -> bool:
        return True

    def chunk_end(self, kv: TokenReservation, computed_tok: int, upto_tok: int) -> int:
        return upto_tok

    def settle(self, kv: TokenReservation) -> None:
        """Only requests of a real engine move; here `computed` counts."""

    def release(self, kv: TokenReservation) -> None:
        del self.reservations[id(kv)]
        self.held_tok -= kv.held_tok
        self.final_tok -= kv.final_tok

    # Without a prefix cache nothing ever matches.

    def match(self, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None) -> int:
        return 0

    def watch(
        self, id: RequestId, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None
    ) -> int:
        return 0

    def unwatch(self, id: RequestId) -> None:
        pass

    def touched(self) -> list[RequestId] | None:
        return []

    def clear_cache(self) -> None:
        pass

    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> Sequence[Hashable]:
        return ()
