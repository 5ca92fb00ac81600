"""The scheduler's data: the state of a live request, a step's plan and its results. No device, no clock."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.kvcache.sequence import SequencePages, Settlement
from serving.kvcache.slab_plan import SlabPlan
from serving.kvcache.tokens import TokenSequence
from serving.request import FinishReason, RequestId, RequestInfo


@dataclass(eq=False, slots=True)
class RequestState:
    """A live request.

    Attributes:
      info: what policies may know of it.
      tokens: the prompt, as the prefix tree sees it.
      computed_tok: tokens whose KV is in pages. While decoding, one less than there are tokens.
      no_growth_until_tok: while it computes no further than this, its pages need no change.
      kv: its pages; None while it waits.
      slab: how it is cut after its prompt; None = it keeps every token in pages.
      forced_ids: what its output begins with, whatever the model says.
    """

    info: RequestInfo
    tokens: TokenSequence
    cache_salt: Hashable
    arrival_s: float
    computed_tok: int = 0
    no_growth_until_tok: float = 0
    output_tok: int = 0
    output_ids: list[int] = field(default_factory=list)
    kv: SequencePages | None = None
    hit_tok: int = 0
    admit_s: float = -1.0
    first_token_s: float = -1.0
    preemptions: int = 0
    slab: SlabPlan | None = None
    forced_ids: Sequence[int] = ()

    @property
    def all_tokens(self) -> TokenSequence:
        """Prompt and outputs so far."""
        return self.tokens.extended(self.output_ids) if self.output_ids else self.tokens

    @property
    def total_tok(self) -> int:
        return self.info.prompt_tok + self.output_tok

    @property
    def prefill_tok(self) -> int:
        """Tokens to compute before it can decode: all but the newest output, left to its decode step.

        What a slab keeps depends on the steps that filled it, so outputs of a request that has one are never
        computed as a prompt.
        """
        if self.slab is not None:
            return self.info.prompt_tok
        return self.total_tok - (self.output_tok > 0)

    @property
    def replay_tok(self) -> int:
        """Decode steps until a request that lost its slab is where it was; their tokens are known."""
        if self.slab is None or not self.output_tok:
            return 0
        return self.total_tok - 1 - self.computed_tok

    @property
    def next_is_known(self) -> bool:
        """Whether its next decode step yields a token that is known already."""
        return self.output_tok < len(self.forced_ids) or self.replay_tok > 0

    def known_from(self, at: int, count: int) -> Sequence[int]:
        """Of outputs `at .. at + count - 1`, those that are known: produced before, or given."""
        produced = len(self.output_ids)
        return [*self.output_ids[at : at + count], *self.forced_ids[max(at, produced) : at + count]]

    @property
    def steps_left(self) -> int:
        """Decode steps that it may still take."""
        return self.left_tok + self.replay_tok

    @property
    def left_tok(self) -> int:
        return self.info.max_output_tok - self.output_tok

    @property
    def prefilling(self) -> bool:
        return self.computed_tok < self.prefill_tok

    @property
    def prefilled_tok(self) -> int | None:
        """Tokens of an unfinished prefill computed or found; None if it is whole or has not begun."""
        return self.computed_tok if self.prefilling and self.admit_s >= 0 else None

    @property
    def slot(self) -> int:
        assert self.kv is not None
        return self.kv.slot


@dataclass(slots=True)  # not frozen: see `serving.request.Delta`
class PrefillChunk:
    """Tokens `start..end-1` of a request, computed in one step.

    Attributes:
      last: the request can decode after it.
      samples: it yields the request's first output. A preempted request knows its next token already.
    """

    req: RequestState
    start: int
    end: int
    last: bool
    samples: bool


@dataclass(frozen=True, slots=True)
class PlannedSettle:
    """A request whose prompt moves to its slab, and the pages to move from."""

    req: RequestState
    pages: Settlement


@dataclass(slots=True)  # not frozen: see `serving.request.Delta`
class StepPlan:
    """One step: prompts move to slabs, then chunks, then `steps` decode steps of the rows that were decoding.

    Rows in slabs decode in a call of their own.
    """

    chunks: tuple[PrefillChunk, ...]
    decode: tuple[RequestState, ...]
    steps: int
    settles: tuple[PlannedSettle, ...] = ()


@dataclass(slots=True)  # not frozen: see `serving.request.Delta`
class StepResult:
    """What a step produced for one request.

    Attributes:
      count: tokens produced.
      ids: their ids, if they are real.
      finish: why it ended, if it did; the scheduler adds `length` where its allowance is used up.
      replayed: steps whose tokens were known already, before those that count.
    """

    count: int
    ids: Sequence[int] = ()
    finish: FinishReason | None = None
    replayed: int = 0


class MemoryManager(Protocol):
    """What the scheduler needs of KV memory, as `KVCacheManager` has it; a simulator may count tokens.

    `plan` and `settles_tok` are given only for requests that have a slab, and `may_start`, `chunk_end` and
    `settle` are called only for those.
    """

    @property
    def slots_free(self) -> int: ...
    def never_fits(self, final_tok: int, settles_tok: int | None = None) -> str | None: ...
    def match(self, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None) -> int: ...
    def watch(
        self, id: RequestId, tokens: TokenSequence, cache_salt: Hashable, plan: SlabPlan | None = None
    ) -> int: ...
    def unwatch(self, id: RequestId) -> None: ...
    def touched(self) -> list[RequestId] | None: ...
    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> Sequence[Hashable]: ...
    def admit(
        self,
        tokens: TokenSequence,
        cache_salt: Hashable,
        final_tok: int,
        *,
        reserve: bool,
        plan: SlabPlan | None = None,
    ) -> tuple[Any, int] | None: ...
    def may_start(self, plan: SlabPlan) -> bool: ...
    def chunk_end(self, kv: Any, computed_tok: int, upto_tok: int) -> int: ...
    def settle(self, kv: Any) -> Settlement | None: ...
    def grow(self, kv: Any, computed_tok: int, upto_tok: int) -> bool: ...
    def computed(self, kv: Any, tokens: TokenSequence, computed_tok: int, *, share: bool) -> None: ...
    def release(self, kv: Any) -> None: ...
    def clear_cache(self) -> None: ...
