"""Continuous batching as a host state machine: who prefills, who decodes, who waits. No device, no clock.

    plan(now)            -> Plan: which prompt chunks and which decode rows run next, or None if idle
    (somebody runs it: compiled programs in the engine, a cost model in the simulator)
    commit(plan, produced, now) -> requests that ended

Policies decide the order of admission, `PagedMemory` whether it fits. Nobody is skipped because the head of
the line does not fit. Every decision goes, in order, to `log` as one JSON-ready dict.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from serving.config import Limits
from serving.engine.plan import Chunk, Entry, Memory, Plan, Produced
from serving.fair.policy import Policy
from serving.kvcache.manager import ALONE
from serving.request import Ask, Client, FinishReason, Output, RequestId


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
        self._reserves = limits.admission == "reserve"
        # Waiting for a prefix pays only where there is a cache to find it in.
        self._page_tok: int = getattr(memory, "page_tok", 0)
        # A memory that cannot say so is asked at every step.
        self._steady: Callable[[Any], float] = getattr(memory, "steady_tok", lambda holding: 0)
        self._share_cold = limits.share_cold and getattr(memory, "reuse", False)
        self.running: dict[RequestId, Entry] = {}  # in order of admission
        self.prefilling: dict[RequestId, Entry] = {}  # of these, the ones that cannot decode yet

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
        # Several steps at once would take the room for which a chunk may be waiting.
        busy = bool(chunks or (self._reserves and self.prefilling))
        steps = self._choose_steps(decode, busy)
        decode, steps = self._grow_rows(decode, steps, now_s)
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
        if not rows or plan.chunks or self.prefilling or (self.waiting and not full):
            return None
        steps = self._at_most(min(e.left_tok for e in rows) - plan.steps)
        for e in rows:
            if not self.memory.grow(e.holding, e.computed_tok, e.computed_tok + plan.steps + steps):
                return None
        return Plan((), tuple(rows), steps)

    def commit(self, plan: Plan, produced: Mapping[RequestId, Produced], now_s: float) -> list[Output]:
        """Books what a step produced; returns the requests it ended, those that broke in mid prompt first."""
        broken: list[Output | None] = []
        for chunk in plan.chunks:
            entry = chunk.entry
            if entry.holding is None:
                continue  # cancelled while the step ran
            got = produced.get(entry.ask.id)
            error = got is not None and got.finish == "error"
            if error and not chunk.samples:  # in mid prompt, or when it was computed again
                broken.append(self.cancel(entry.ask.id, now_s, "error"))
                continue
            entry.computed_tok = chunk.end
            if chunk.last:
                del self.prefilling[entry.ask.id]
            # Where logits are not finite, what was computed for them need not be.
            self._computed(entry, share=not error)
        rows = [c.entry for c in plan.chunks if c.samples] + list(plan.decode)
        ended = self._book([e for e in rows if e.holding is not None], produced, now_s)
        return [output for output in broken if output] + [self._finish(e, why, now_s) for e, why in ended]

    # ---- inside ----

    def _decoding(self) -> list[Entry]:
        rows = self.running.values()
        return [e for e in rows if not e.prefilling] if self.prefilling else list(rows)

    def _continue_prefills(self) -> list[Chunk]:
        budget, chunks = self.limits.step_tok, []
        for entry in self.prefilling.values():
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
                reserve=self._reserves,
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
        if not self.prefilling or entry.salt is ALONE:
            return False
        tokens = entry.all_tokens.cut(0, entry.prefill_tok)
        end = self.memory.match(tokens, entry.salt) + self._page_tok
        return any(
            other.salt == entry.salt
            and other.computed_tok < end <= other.prefill_tok
            and tokens.common(0, other.all_tokens.cut(0, end)) == end < len(tokens)
            for other in self.prefilling.values()
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
            self.prefilling[ask.id] = entry

    def _chunk(self, entry: Entry, budget: int) -> Chunk | None:
        end = min(entry.prefill_tok, entry.computed_tok + min(budget, self.limits.chunk_tok))
        assert entry.holding is not None
        if not self.memory.grow(entry.holding, entry.computed_tok, end):
            return None  # others hold what it would be lent: it waits a step, or, if optimistic, for pages
        last = end == entry.prefill_tok
        return Chunk(entry, entry.computed_tok, end, last, last and entry.output_tok == 0)

    def _choose_steps(self, rows: Sequence[Entry], busy: bool) -> int:
        """As many as change nothing for others: few while anyone could be admitted, one beside a prefill."""
        if not rows or busy or self._step_sizes[-1] == 1:
            return 1
        most = min([e.ask.max_output_tok - e.output_tok for e in rows])
        if most > self.limits.admit_every and self.waiting and self.memory.slots_free:
            most = min(most, self.limits.admit_every)
        return self._at_most(most)

    def _at_most(self, steps: int) -> int:
        return self._step_sizes[max(0, bisect_right(self._step_sizes, steps) - 1)]

    def _grow_rows(self, rows: list[Entry], steps: int, now_s: float) -> tuple[list[Entry], int]:
        """Room for `steps` more tokens a row; who is preempted for it drops out.

        Where pages are reserved nobody is, but several steps may turn out to be too many at once. (Optimists
        that first took fewer steps were preempted all the oftener: 75,000 times for 1,900 in E11.)
        """
        before = len(self.running)
        for entry in rows:
            upto = entry.computed_tok + steps  # no row is planned beyond its allowance (see `_choose_steps`)
            if upto <= entry.steady_tok:
                continue  # most rows of most steps: this and `_book` are the innermost bookkeeping
            while (
                self._reserves and steps > 1 and not self.memory.grow(entry.holding, entry.computed_tok, upto)
            ):
                steps = self._at_most(steps // 2)
                upto = entry.computed_tok + steps
            while entry.holding is not None and not self.memory.grow(entry.holding, entry.computed_tok, upto):
                self.preempt(self._victim().ask.id, now_s)
            if entry.holding is not None:
                entry.steady_tok = self._steady(entry.holding)
        rows = rows if len(self.running) == before else [e for e in rows if e.holding is not None]
        return rows, steps

    def _victim(self) -> Entry:
        """Least work lost: fewest outputs first, then the longest prompt."""
        return min(self.running.values(), key=lambda e: (e.output_tok, -e.ask.prompt_tok, -e.ask.seq))

    def _book(
        self, rows: Sequence[Entry], produced: Mapping[RequestId, Produced], now_s: float
    ) -> list[tuple[Entry, FinishReason]]:
        """Adds what each row produced; returns those that are over, and why."""
        ended: list[tuple[Entry, FinishReason]] = []
        tokens_of: dict[RequestId, int] = {}
        clients: dict[Client, int] = {}
        for entry in rows:
            ask = entry.ask
            got = produced.get(ask.id)
            if got is None:
                continue
            left = ask.max_output_tok - entry.output_tok
            count = got.count if got.count < left else left
            if count and not entry.output_tok:
                entry.first_token_s = now_s
                self._tell(now_s, "first_token", ask)
            entry.output_tok += count
            if got.ids:
                entry.output_ids += got.ids[:count]
            entry.computed_tok = ask.prompt_tok + entry.output_tok - 1
            tokens_of[ask.id] = count
            clients[ask.client] = clients.get(ask.client, 0) + count
            if entry.computed_tok >= entry.steady_tok:
                self._computed(entry, share=False)
            if got.finish or count == left:
                ended.append((entry, got.finish or "length"))
        if tokens_of:
            self.policy.decoded(tokens_of)
            self.log({"t": now_s, "event": "tokens", "counts": clients})
        return ended

    def _computed(self, entry: Entry, *, share: bool) -> None:
        assert entry.holding is not None
        tokens = entry.all_tokens if share else entry.tokens
        self.memory.computed(entry.holding, tokens, entry.computed_tok, share=share)
        entry.steady_tok = self._steady(entry.holding)

    def _finish(self, entry: Entry, why: FinishReason, now_s: float) -> Output:
        self._computed(entry, share=why in ("stop", "length"))
        self._release(entry)
        del self.running[entry.ask.id]
        self.policy.finish(entry.ask.id)
        self._tell(now_s, "finish", entry.ask)
        return _output(entry, why, now_s)

    def _release(self, entry: Entry) -> None:
        self.prefilling.pop(entry.ask.id, None)
        if entry.holding is not None:
            self.memory.release(entry.holding)
            entry.holding, entry.steady_tok = None, 0

    def _tell(self, now_s: float, event: str, ask: Ask, **more: int) -> None:
        self.log({"t": now_s, "event": event, "id": ask.id, "client": ask.client, **more})


def _prefilled(entry: Entry) -> dict[str, int]:
    return {} if entry.prefilled_tok is None else {"prefilled": entry.prefilled_tok}


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
