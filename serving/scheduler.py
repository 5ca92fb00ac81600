"""Continuous batching as a host state machine: who prefills, who decodes, who waits. No device, no clock.

    plan(now)            -> Plan: which prompt chunks and which decode rows run next, or None if idle
    (somebody runs it: compiled programs in the engine, a cost model in the simulator)
    commit(plan, produced, now) -> requests that ended

Policies decide the order of admission, `PagedMemory` whether it fits. Nobody is skipped because the head of
the line does not fit. Every decision goes, in order, to `log` as one JSON-ready dict.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.config import Limits
from serving.fair.policy import Policy
from serving.memory import ALONE, Holding
from serving.request import Ask, Client, FinishReason, Output, RequestId
from serving.tokens import Tokens


@dataclass(eq=False, slots=True)
class Entry:
    """A live request.

    Attributes:
      tokens: the prompt, as the prefix tree sees it.
      computed_tok: tokens whose KV is in pages. While decoding, one less than there are tokens.
      holding: its memory; None while it waits.
    """

    ask: Ask
    tokens: Tokens
    salt: Hashable
    arrival_s: float
    computed_tok: int = 0
    output_tok: int = 0
    output_ids: list[int] = field(default_factory=list)
    holding: Holding | None = None
    hit_tok: int = 0
    admit_s: float = -1.0
    first_token_s: float = -1.0
    preemptions: int = 0

    @property
    def all_tokens(self) -> Tokens:
        """Prompt and outputs so far."""
        return self.tokens.extended(self.output_ids) if self.output_ids else self.tokens

    @property
    def total_tok(self) -> int:
        return self.ask.prompt_tok + self.output_tok

    @property
    def prefill_tok(self) -> int:
        """Tokens computed before it can decode: all but the newest output, whose step computes it."""
        return self.total_tok - (self.output_tok > 0)

    @property
    def left_tok(self) -> int:
        return self.ask.max_output_tok - self.output_tok

    @property
    def prefilling(self) -> bool:
        return self.computed_tok < self.prefill_tok

    @property
    def prefilled_tok(self) -> int | None:
        """How much of an unfinished prefill was executed or found; None if it is whole or has not begun."""
        return self.computed_tok if self.prefilling and self.admit_s >= 0 else None

    @property
    def slot(self) -> int:
        assert self.holding is not None
        return self.holding.slot


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start..end-1` of a request.

    Attributes:
      last: the request can decode after it.
      samples: it yields the request's first output. A request that was preempted has its next token already.
    """

    entry: Entry
    start: int
    end: int
    last: bool
    samples: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: chunks first, then `steps` decode steps of the rows that were decoding before it."""

    chunks: tuple[Chunk, ...]
    decode: tuple[Entry, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class Produced:
    """What a request got out of a step.

    Attributes:
      count: tokens produced.
      ids: their ids, if they are real.
      finish: why it ended, if it did. Running out of its allowance is `length`; the scheduler sees to that.
    """

    count: int
    ids: Sequence[int] = ()
    finish: FinishReason | None = None


class Memory(Protocol):
    """What the scheduler asks of memory: `PagedMemory`, or a simulator's count of tokens. See there."""

    @property
    def slots_free(self) -> int: ...
    def never_fits(self, final_tok: int) -> str | None: ...
    def match(self, tokens: Tokens, salt: Hashable) -> int: ...
    def watch(self, id: RequestId, tokens: Tokens, salt: Hashable) -> int: ...
    def unwatch(self, id: RequestId) -> None: ...
    def touched(self) -> list[RequestId] | None: ...
    def path(self, tokens: Tokens, salt: Hashable) -> Sequence[Hashable]: ...
    def admit(
        self, tokens: Tokens, salt: Hashable, final_tok: int, *, reserve: bool
    ) -> tuple[Any, int] | None: ...
    def grow(self, holding: Any, computed_tok: int, upto_tok: int) -> bool: ...
    def computed(self, holding: Any, tokens: Tokens, computed_tok: int, *, share: bool) -> None: ...
    def release(self, holding: Any) -> None: ...
    def clear_cache(self) -> None: ...


class Locality:
    """What a policy may ask the cache about waiting requests; see `serving.fair.policy.Match`."""

    def __init__(self, memory: Memory, waiting: Mapping[RequestId, Entry]):
        self._memory, self._waiting = memory, waiting

    def __call__(self, ask: Ask) -> int:
        entry = self._waiting[ask.id]
        return self._memory.watch(ask.id, entry.all_tokens, entry.salt)

    def changed(self) -> list[RequestId] | None:
        return self._memory.touched()

    def path(self, ask: Ask) -> Sequence[Hashable]:
        entry = self._waiting[ask.id]
        return self._memory.path(entry.all_tokens, entry.salt)


class Scheduler:
    """Queues, admission and bookkeeping around one policy and one memory."""

    def __init__(
        self,
        policy: Policy | Callable[[Callable[[Ask], int]], Policy],
        memory: Memory,
        limits: Limits,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
    ):
        limits.check()
        self.memory, self.limits, self.log = memory, limits, log
        self.waiting: dict[RequestId, Entry] = {}
        # A policy that orders by locality is built around the cache's answer.
        self.policy: Policy = policy(Locality(memory, self.waiting)) if callable(policy) else policy
        self._step_sizes = sorted(limits.decode_steps)
        # Waiting for a prefix pays only where there is a cache to find it in.
        self._page_tok: int = getattr(memory, "page_tok", 0)
        self._share_cold = limits.share_cold and getattr(memory, "reuse", False)
        self.running: dict[RequestId, Entry] = {}  # in order of admission
        self._prefilling: dict[RequestId, Entry] = {}  # of these, the ones that cannot decode yet

    # ---- events from outside ----

    def submit(self, entry: Entry, now_s: float) -> bool:
        """A request arrives. Returns False if the policy refuses it (a rate limit).

        Raises:
          ValueError: its id is live already, or it could not run even alone.
        """
        ask = entry.ask
        if ask.id in self.waiting or ask.id in self.running:
            raise ValueError(f"request id {ask.id!r} is live already")
        if why := self.memory.never_fits(ask.prompt_tok + ask.max_output_tok):
            raise ValueError(f"request {ask.id!r} of {ask.client!r} {why}")
        self._tell(now_s, "arrive", ask)
        self.waiting[ask.id] = entry
        if self.policy.arrive(ask, now_s):
            return True
        del self.waiting[ask.id]
        self._tell(now_s, "cancel", ask)
        return False

    def cancel(self, id: RequestId, now_s: float, reason: FinishReason = "cancel") -> Output | None:
        """Ends a live request; returns its output so far, or None if it is not live (any more)."""
        entry = self.waiting.pop(id, None) or self.running.pop(id, None)
        if entry is None:
            return None
        self.memory.unwatch(id)
        self.policy.cancel(id, prefilled_tok=entry.prefilled_tok)
        self._tell(now_s, "cancel", entry.ask, **_prefilled(entry))
        self._release(entry)
        return _output(entry, reason, now_s)

    def preempt(self, id: RequestId, now_s: float, *, keep: bool = True) -> None:
        """Puts a running request back to waiting; it computes again what the cache does not hold then.

        Args:
          keep: what it has computed goes to the cache. False if that is lost.
        """
        entry = self.running[id]
        if keep:
            self._computed(entry, share=True)
        self._release(entry)
        prefilled, told = entry.prefilled_tok, _prefilled(entry)
        entry.preemptions += 1
        entry.computed_tok = 0
        del self.running[id]
        self.waiting[id] = entry  # before the policy is told, which may ask for its match
        self.policy.preempt(id, prefilled_tok=prefilled)
        self._tell(now_s, "preempt", entry.ask, **told)

    def lose_memory(self, now_s: float) -> None:
        """All pages are lost: running requests wait again and nothing is cached."""
        for id in list(self.running):
            self.preempt(id, now_s, keep=False)
        self.memory.clear_cache()

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    # ---- the step ----

    def plan(self, now_s: float) -> Plan | None:
        """Decides the next step and makes room for it. None if there is nothing to run."""
        chunks = self._continue_prefills()
        chunks += self._admit(now_s, self.limits.step_tok - sum(c.end - c.start for c in chunks))
        decode = self._decoding() if self.limits.mixed or not chunks else []
        steps = self._choose_steps(decode, busy=bool(chunks))
        decode = self._grow_rows(decode, steps, now_s)
        # Making room may have preempted someone who was planned.
        chunks = [c for c in chunks if c.entry.holding is not None]
        return Plan(tuple(chunks), tuple(decode), steps) if chunks or decode else None

    def ahead(self, plan: Plan) -> Plan | None:
        """The step behind `plan`, while that is still running: decode rows only, as if none stopped early.

        Rows that did stop run on for nothing; what they write is theirs or nobody's until it has run. None
        where the outcome of `plan` decides what is next: prompts to compute, or room for a newcomer.
        """
        rows = [e for e in plan.decode if e.holding is not None and e.left_tok > plan.steps]
        full = not self.memory.slots_free and len(rows) == len(plan.decode)
        if not rows or plan.chunks or self._prefilling or (self.waiting and not full):
            return None
        steps = self._at_most(min(e.left_tok for e in rows) - plan.steps)
        for e in rows:
            if not self.memory.grow(e.holding, e.computed_tok, e.computed_tok + plan.steps + steps):
                return None
        return Plan((), tuple(rows), steps)

    def commit(self, plan: Plan, produced: Mapping[RequestId, Produced], now_s: float) -> list[Output]:
        """Books what a step produced; returns the requests it ended, in plan order."""
        for chunk in plan.chunks:
            if chunk.entry.holding is not None:  # not cancelled while the step ran
                chunk.entry.computed_tok = chunk.end
                if chunk.last:
                    del self._prefilling[chunk.entry.ask.id]
                self._computed(chunk.entry, share=True)
        rows = [c.entry for c in plan.chunks if c.samples] + list(plan.decode)
        rows = [e for e in rows if e.holding is not None and e.ask.id in produced]
        self._book(rows, produced, now_s)
        return [self._finish(e, why, now_s) for e in rows if (why := _why_over(e, produced[e.ask.id]))]

    # ---- inside ----

    def _decoding(self) -> list[Entry]:
        rows = self.running.values()
        return [e for e in rows if not e.prefilling] if self._prefilling else list(rows)

    def _continue_prefills(self) -> list[Chunk]:
        budget, chunks = self.limits.step_tok, []
        for entry in self._prefilling.values():
            if entry.prefilling and budget > 0 and (chunk := self._chunk(entry, budget)):
                chunks.append(chunk)
                budget -= chunk.end - chunk.start
        return chunks

    def _admit(self, now_s: float, budget: int) -> list[Chunk]:
        chunks = []
        while budget > 0 and (ask := self.policy.pick(now_s)) is not None:
            entry = self.waiting[ask.id]
            if self._share_cold and self._is_coming(entry):
                break  # its next page is under way: waiting for it is cheaper than computing it twice
            got = self.memory.admit(
                entry.all_tokens.cut(0, entry.prefill_tok),
                entry.salt,
                ask.prompt_tok + ask.max_output_tok,
                reserve=self.limits.admission == "reserve",
            )
            if got is None:
                break
            entry.holding, entry.computed_tok = got
            self._start(entry, now_s)
            if chunk := self._chunk(entry, budget):
                chunks.append(chunk)
                budget -= chunk.end - chunk.start
        return chunks

    def _is_coming(self, entry: Entry) -> bool:
        """Whether a running request is about to compute the page that `entry` would have to compute next."""
        if not self._prefilling or entry.salt is ALONE:
            return False
        tokens = entry.all_tokens.cut(0, entry.prefill_tok)
        end = self.memory.match(tokens, entry.salt) + self._page_tok
        return any(
            other.salt == entry.salt
            and other.computed_tok < end <= other.prefill_tok
            and tokens.common(0, other.all_tokens.cut(0, end)) == end < len(tokens)
            for other in self._prefilling.values()
        )

    def _start(self, entry: Entry, now_s: float) -> None:
        ask, hit = entry.ask, entry.computed_tok
        extend = entry.prefill_tok - hit
        if entry.admit_s < 0:
            entry.admit_s, entry.hit_tok = now_s, hit
        self.policy.admit(ask, extend_tok=extend, hit_tok=hit)
        self._tell(now_s, "admit", ask, extend=extend, hit=hit)
        del self.waiting[ask.id]
        self.memory.unwatch(ask.id)
        self.running[ask.id] = entry
        if entry.prefilling:
            self._prefilling[ask.id] = entry

    def _chunk(self, entry: Entry, budget: int) -> Chunk | None:
        end = min(entry.prefill_tok, entry.computed_tok + min(budget, self.limits.chunk_tok))
        assert entry.holding is not None
        if not self.memory.grow(entry.holding, entry.computed_tok, end):
            return None  # optimistic admission only: waits for pages
        last = end == entry.prefill_tok
        return Chunk(entry, entry.computed_tok, end, last, last and entry.output_tok == 0)

    def _choose_steps(self, rows: Sequence[Entry], busy: bool) -> int:
        """As many as change nothing for others: few while anyone could be admitted, one beside a prefill."""
        if not rows or busy:
            return 1
        most = min([e.ask.max_output_tok - e.output_tok for e in rows])
        if most > self.limits.admit_every and self.waiting and self.memory.slots_free:
            most = min(most, self.limits.admit_every)
        return self._at_most(most)

    def _at_most(self, steps: int) -> int:
        return self._step_sizes[max(0, bisect_right(self._step_sizes, steps) - 1)]

    def _grow_rows(self, rows: Sequence[Entry], steps: int, now_s: float) -> list[Entry]:
        grow = self.memory.grow
        for entry in rows:
            # No row is planned beyond its allowance (see `_choose_steps`).
            while entry.holding is not None and not grow(
                entry.holding, entry.computed_tok, entry.computed_tok + steps
            ):
                self.preempt(self._victim().ask.id, now_s)
        return [e for e in rows if e.holding is not None]

    def _victim(self) -> Entry:
        """Least work lost: fewest outputs first, then the longest prompt."""
        return min(self.running.values(), key=lambda e: (e.output_tok, -e.ask.prompt_tok, -e.ask.seq))

    def _book(self, rows: Sequence[Entry], produced: Mapping[RequestId, Produced], now_s: float) -> None:
        tokens_of: dict[RequestId, int] = {}
        clients: dict[Client, int] = {}
        for entry in rows:
            ask, got = entry.ask, produced[entry.ask.id]
            left = ask.max_output_tok - entry.output_tok
            count = got.count if got.count < left else left
            if count and not entry.output_tok:
                entry.first_token_s = now_s
                self._tell(now_s, "first_token", ask)
            entry.output_tok += count
            if len(got.ids):
                entry.output_ids.extend(got.ids[:count])
            entry.computed_tok = ask.prompt_tok + entry.output_tok - 1
            tokens_of[ask.id] = count
            clients[ask.client] = clients.get(ask.client, 0) + count
            self.memory.computed(entry.holding, entry.tokens, entry.computed_tok, share=False)
        if tokens_of:
            self.policy.decoded(tokens_of)
            self.log({"t": now_s, "event": "tokens", "counts": clients})

    def _computed(self, entry: Entry, *, share: bool) -> None:
        assert entry.holding is not None
        tokens = entry.all_tokens if share else entry.tokens
        self.memory.computed(entry.holding, tokens, entry.computed_tok, share=share)

    def _finish(self, entry: Entry, why: FinishReason, now_s: float) -> Output:
        self._computed(entry, share=why in ("stop", "length"))
        self._release(entry)
        del self.running[entry.ask.id]
        self.policy.finish(entry.ask.id)
        self._tell(now_s, "finish", entry.ask)
        return _output(entry, why, now_s)

    def _release(self, entry: Entry) -> None:
        self._prefilling.pop(entry.ask.id, None)
        if entry.holding is not None:
            self.memory.release(entry.holding)
            entry.holding = None

    def _tell(self, now_s: float, event: str, ask: Ask, **more: int) -> None:
        self.log({"t": now_s, "event": event, "id": ask.id, "client": ask.client, **more})


def _prefilled(entry: Entry) -> dict[str, int]:
    return {} if entry.prefilled_tok is None else {"prefilled": entry.prefilled_tok}


def _why_over(entry: Entry, got: Produced) -> FinishReason | None:
    return got.finish or ("length" if entry.left_tok <= 0 else None)


def _output(entry: Entry, why: FinishReason, now_s: float) -> Output:
    return Output(
        id=entry.ask.id,
        client=entry.ask.client,
        output_ids=entry.output_ids,
        finish_reason=why,
        prompt_tok=entry.ask.prompt_tok,
        hit_tok=entry.hit_tok,
        arrival_s=entry.arrival_s,
        admit_s=entry.admit_s,
        first_token_s=entry.first_token_s,
        finish_s=now_s,
    )
