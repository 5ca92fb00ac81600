"""The scheduler's data: the state of a live request, a step's plan and its results. No device, no clock."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.kvcache.manager import SequencePages
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

    @property
    def all_tokens(self) -> TokenSequence:
        """Prompt and outputs so far."""
        return self.tokens.extended(self.output_ids) if self.output_ids else self.tokens

    @property
    def total_tok(self) -> int:
        return self.info.prompt_tok + self.output_tok

    @property
    def prefill_tok(self) -> int:
        """Tokens to compute before it can decode: all but the newest output, left to its decode step."""
        return self.total_tok - (self.output_tok > 0)

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


@dataclass(frozen=True, slots=True)
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
class StepPlan:
    """One step: chunks first, then `steps` decode steps of the rows that were decoding before it."""

    chunks: tuple[PrefillChunk, ...]
    decode: tuple[RequestState, ...]
    steps: int


@dataclass(slots=True)  # not frozen: see `serving.request.Delta`
class StepResult:
    """What a step produced for one request.

    Attributes:
      count: tokens produced.
      ids: their ids, if they are real.
      finish: why it ended, if it did; the scheduler adds `length` where its allowance is used up.
    """

    count: int
    ids: Sequence[int] = ()
    finish: FinishReason | None = None


class MemoryManager(Protocol):
    """What the scheduler needs of KV memory, as `KVCacheManager` has it; a simulator may count tokens."""

    @property
    def slots_free(self) -> int: ...
    def never_fits(self, final_tok: int) -> str | None: ...
    def match(self, tokens: TokenSequence, cache_salt: Hashable) -> int: ...
    def watch(self, id: RequestId, tokens: TokenSequence, cache_salt: Hashable) -> int: ...
    def unwatch(self, id: RequestId) -> None: ...
    def touched(self) -> list[RequestId] | None: ...
    def path(self, tokens: TokenSequence, cache_salt: Hashable) -> Sequence[Hashable]: ...
    def admit(
        self, tokens: TokenSequence, cache_salt: Hashable, final_tok: int, *, reserve: bool
    ) -> tuple[Any, int] | None: ...
    def grow(self, kv: Any, computed_tok: int, upto_tok: int) -> bool: ...
    def computed(self, kv: Any, tokens: TokenSequence, computed_tok: int, *, share: bool) -> None: ...
    def release(self, kv: Any) -> None: ...
    def clear_cache(self) -> None: ...
