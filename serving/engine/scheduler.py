"""Continuous batching as a host state machine: who prefills, who decodes, who waits. No device, no clock.

    plan(now)            -> Plan: which prompt chunks and which decode rows run next, or None if idle
    (the engine runs it with compiled programs, the simulator with a cost model)
    commit(plan, produced, now) -> requests that ended

Policies decide the order of admission, `KVCacheManager` whether a request fits. No request is skipped because
the head of the line does not fit. Every decision goes, in order, to `log` as one JSON-ready dict.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from serving.config import Limits
from serving.engine.admission_window import AdmissionWindow
from serving.engine.plan import (
    MemoryManager,
    PlannedSettle,
    PrefillChunk,
    RequestState,
    StepPlan,
    StepResult,
)
from serving.fair.policy import Policy
from serving.kvcache.manager import UNSHARED
from serving.request import ClientId, FinishReason, Output, RequestId, RequestInfo


class CacheLocality:
    """Tells a policy about cached prefixes of waiting requests; see `serving.fair.policy.Match`."""

    def __init__(self, memory: MemoryManager, waiting: Mapping[RequestId, RequestState]):
        self._memory, self._waiting = memory, waiting

    def __call__(self, info: RequestInfo) -> int:
        req = self._waiting[info.id]
        if req.slab is not None:
            return self._memory.watch(info.id, req.tokens, req.cache_salt, req.slab)
        return self._memory.watch(info.id, req.all_tokens, req.cache_salt)

    def changed(self) -> list[RequestId] | None:
        return self._memory.touched()

    def path(self, info: RequestInfo) -> Sequence[Hashable]:
        req = self._waiting[info.id]
        return self._memory.path(req.all_tokens, req.cache_salt)


class Scheduler:
    """Queues, admission and bookkeeping around one policy and one memory."""

    def __init__(
        self,
        policy: Policy | Callable[[Callable[[RequestInfo], int]], Policy],
        memory: MemoryManager,
        limits: Limits,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
    ):
        limits.check()
        self.memory, self.limits, self.log = memory, limits, log
        self.waiting: dict[RequestId, RequestState] = {}
        # A policy that orders by locality is built around the cache's answer.
        self.policy: Policy = policy(CacheLocality(memory, self.waiting)) if callable(policy) else policy
        self._step_sizes = sorted(limits.decode_steps)
        self._reserves = limits.admission == "reserve"
        # Waiting for a prefix pays only where there is a cache to find it in.
        self._page_tok: int = getattr(memory, "page_tok", 0)
        # A memory without this method is asked at every step.
        self._no_growth_until: Callable[[Any], float] = getattr(memory, "no_growth_until_tok", lambda kv: 0)
        self._share_cold = limits.share_cold and getattr(memory, "reuse", False)
        self._ask_victim: Callable[[float], RequestId | None] = getattr(
            self.policy, "victim", lambda now_s: None
        )
        self._window = AdmissionWindow() if limits.admission == "optimistic" and limits.damped else None
        self.running: dict[RequestId, RequestState] = {}  # in order of admission
        self.prefilling: dict[RequestId, RequestState] = {}  # of these, the ones that cannot decode yet
        self._unsettled: dict[RequestId, RequestState] = {}  # of the others, those that move to a slab next

    # ---- events from outside ----

    def submit(self, req: RequestState, now_s: float) -> bool:
        """A request arrives. Returns False if the policy refuses it (a rate limit).

        Raises:
          ValueError: its id is live already, or it cannot run even alone.
        """
        info = req.info
        if info.id in self.waiting or info.id in self.running:
            raise ValueError(f"request id {info.id!r} is live already")
        settles = {} if req.slab is None else {"settles_tok": info.prompt_tok}
        if why := self.memory.never_fits(info.prompt_tok + info.max_output_tok, **settles):
            raise ValueError(f"request {info.id!r} of {info.client!r} {why}")
        self._log_event(now_s, "arrive", info)
        self.waiting[info.id] = req
        if self.policy.arrive(info, now_s):
            return True
        del self.waiting[info.id]
        self._log_event(now_s, "cancel", info)
        return False

    def cancel(self, id: RequestId, now_s: float, reason: FinishReason = "cancel") -> Output | None:
        """Ends a live request; returns its output so far, or None if it is not live (any more)."""
        req = self.waiting.pop(id, None) or self.running.pop(id, None)
        if req is None:
            return None
        self.memory.unwatch(id)
        self.policy.cancel(id, prefilled_tok=req.prefilled_tok)
        self._log_event(now_s, "cancel", req.info, **_prefilled(req))
        self._release(req)
        return _output(req, reason, now_s)

    def preempt(self, id: RequestId, now_s: float, *, keep: bool = True) -> None:
        """Makes a running request wait again; it computes again what the cache does not hold then.

        Args:
          keep: put what it has computed into the cache; False if that is lost.
        """
        req = self.running[id]
        if keep:
            self._computed(req, share=True)
        self._release(req)
        prefilled, told = req.prefilled_tok, _prefilled(req)
        req.preemptions += 1
        req.computed_tok = 0
        del self.running[id]
        self.waiting[id] = req  # before the policy is told, which may ask for its match
        self.policy.preempt(id, prefilled_tok=prefilled)
        self._log_event(now_s, "preempt", req.info, **told)

    def drop_all_pages(self, now_s: float) -> None:
        """Handles the loss of all pages: running requests wait again, nothing is cached."""
        for id in list(self.running):
            self.preempt(id, now_s, keep=False)
        self.memory.clear_cache()

    def set_weight(self, client: ClientId, weight: float, now_s: float) -> None:
        """From now on the client has this share.

        Raises:
          ValueError: the policy does not share by weight, or the weight is not above 0.
        """
        self.policy.set_weight(client, weight)
        self.log({"t": now_s, "event": "weight", "client": client, "weight": float(weight)})

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    # ---- the step ----

    def plan(self, now_s: float) -> StepPlan | None:
        """Decides the next step and allocates its pages; None if there is nothing to run."""
        settles = self._settle(now_s) if self._unsettled else []
        chunks = self._continue_prefills()
        chunks += self._admit(now_s, self.limits.step_tok - sum(c.end - c.start for c in chunks))
        decode = self._decoding() if self.limits.mixed or not chunks else []
        # Several steps at once would take the pages that a chunk may be waiting for.
        busy = bool(chunks or (self._reserves and self.prefilling))
        steps = self._choose_steps(decode, busy)
        decode, steps = self._grow_rows(decode, steps, now_s)
        # Allocation may have preempted a request that was planned.
        chunks = [c for c in chunks if c.req.kv is not None]
        # A prompt is moved even if its request was preempted since: its pages may be another's already.
        return StepPlan(tuple(chunks), tuple(decode), steps, tuple(settles)) if chunks or decode else None

    def ahead(self, plan: StepPlan) -> StepPlan | None:
        """The step after `plan`, planned while that still runs: decode rows only, as if none stopped early.

        Rows that did stop run on without effect; until the step has run, what they write is in pages of their
        own or in free ones. None where the outcome of `plan` decides the next step: prompts to compute, or
        room for a new request.
        """
        if any(e.next_is_known for e in plan.decode):
            return None  # which of its tokens come next follows from how many came
        rows = [e for e in plan.decode if e.kv is not None and e.left_tok > plan.steps]
        full = not self.memory.slots_free and len(rows) == len(plan.decode)
        if not rows or plan.chunks or self.prefilling or (self.waiting and not full):
            return None
        steps = self._at_most(min(e.left_tok for e in rows) - plan.steps)
        for e in rows:
            if not self.memory.grow(e.kv, e.computed_tok, e.computed_tok + plan.steps + steps):
                return None
        return StepPlan((), tuple(rows), steps)

    def commit(self, plan: StepPlan, produced: Mapping[RequestId, StepResult], now_s: float) -> list[Output]:
        """Records a step's results; returns ended requests' outputs, errors in mid prompt first."""
        broken: list[Output | None] = []
        for chunk in plan.chunks:
            req = chunk.req
            if req.kv is None:
                continue  # cancelled while the step ran
            got = produced.get(req.info.id)
            error = got is not None and got.finish == "error"
            if error and not chunk.samples:  # in mid prompt, or when recomputed after preemption
                broken.append(self.cancel(req.info.id, now_s, "error"))
                continue
            req.computed_tok = chunk.end
            if chunk.last:
                del self.prefilling[req.info.id]
                if req.slab is not None:
                    self._unsettled[req.info.id] = req
            # Where logits are not finite, the KV computed for them may not be either: do not share it.
            self._computed(req, share=not error)
        rows = [c.req for c in plan.chunks if c.samples] + list(plan.decode)
        ended = self._record_tokens([e for e in rows if e.kv is not None], produced, now_s)
        return [output for output in broken if output] + [self._finish(e, why, now_s) for e, why in ended]

    # ---- inside ----

    def _decoding(self) -> list[RequestState]:
        rows = self.running.values()
        return [e for e in rows if not e.prefilling] if self.prefilling else list(rows)

    def _continue_prefills(self) -> list[PrefillChunk]:
        budget, chunks = self.limits.step_tok, []
        for req in self.prefilling.values():
            if req.prefilling and budget > 0 and (chunk := self._chunk(req, budget)):
                chunks.append(chunk)
                budget -= chunk.end - chunk.start
        return chunks

    def _admit(self, now_s: float, budget: int) -> list[PrefillChunk]:
        chunks = []
        while budget > 0 and (info := self.policy.pick(now_s)) is not None:
            req = self.waiting[info.id]
            if req.slab is not None and not self.memory.may_start(req.slab):
                break  # as many prompts collect scores as may: no victim would help
            if self._share_cold and self._is_coming(req):
                break  # its next page is being computed: waiting is cheaper than computing it twice
            got = self._claim(req)
            if got is None:
                victim = self._ask_victim(now_s)
                if victim is None or victim == info.id:
                    break
                self.preempt(victim, now_s)
                continue
            req.kv, req.computed_tok = got
            self._start(req, now_s)
            if chunk := self._chunk(req, budget):
                chunks.append(chunk)
                budget -= chunk.end - chunk.start
        return chunks

    def _settle(self, now_s: float) -> list[PlannedSettle]:
        """Every request whose prompt is computed lets go of its pages; a program moves them this step."""
        settles = []
        for id, req in list(self._unsettled.items()):
            while req.kv is not None and (pages := self.memory.settle(req.kv)) is None:
                self.preempt(self._victim().info.id, now_s)
            if req.kv is not None and pages is not None:
                req.no_growth_until_tok = 0
                settles.append(PlannedSettle(req, pages))
                del self._unsettled[id]
        return settles

    def _claim(self, req: RequestState) -> tuple[Any, int] | None:
        """Memory for a waiting request, and the tokens found in the cache; None if it does not fit now."""
        if self._window is not None and not self._window.admits(len(self.running)):
            return None
        return self.memory.admit(
            req.all_tokens.cut(0, req.prefill_tok),
            req.cache_salt,
            req.info.prompt_tok + req.info.max_output_tok,
            reserve=self._reserves,
            **({} if req.slab is None else {"plan": req.slab}),
        )

    def _is_coming(self, req: RequestState) -> bool:
        """Whether a running request is computing the page that `req` would have to compute next."""
        if not self.prefilling or req.cache_salt is UNSHARED:
            return False
        tokens = req.all_tokens.cut(0, req.prefill_tok)
        if req.slab is not None and req.slab.history:
            return self._is_coming_scored(req)
        found = {} if req.slab is None else {"plan": req.slab}
        end = self.memory.match(tokens, req.cache_salt, **found) + self._page_tok
        return any(
            other.cache_salt == req.cache_salt
            and other.computed_tok < end <= other.prefill_tok
            and tokens.common(0, other.all_tokens.cut(0, end)) == end < len(tokens)
            for other in self.prefilling.values()
        )

    def _is_coming_scored(self, req: RequestState) -> bool:
        """Whether a running request is about to leave a snapshot where `req` could begin."""
        tokens = req.tokens
        found = self.memory.match(tokens, req.cache_salt, req.slab)
        return any(
            found < mark < len(tokens)
            and mark > other.computed_tok
            and tokens.common(0, other.tokens.cut(0, mark)) == mark
            for other in self.prefilling.values()
            if other.cache_salt == req.cache_salt and other.kv is not None and other.kv.votes is not None
            for mark in other.kv.votes.marks
        )

    def _start(self, req: RequestState, now_s: float) -> None:
        info, hit = req.info, req.computed_tok
        extend = req.prefill_tok - hit
        if req.admit_s < 0:
            req.admit_s, req.hit_tok = now_s, hit
        self.policy.admit(info, extend_tok=extend, hit_tok=hit)
        self._log_event(now_s, "admit", info, extend=extend, hit=hit)
        del self.waiting[info.id]
        self.memory.unwatch(info.id)
        self.running[info.id] = req
        if req.prefilling:
            self.prefilling[info.id] = req

    def _chunk(self, req: RequestState, budget: int) -> PrefillChunk | None:
        whole_tok = req.prefill_tok
        end = min(whole_tok, req.computed_tok + min(budget, self.limits.chunk_tok))
        assert req.kv is not None
        if req.slab is not None:
            end = self.memory.chunk_end(req.kv, req.computed_tok, end)
        if not self.memory.grow(req.kv, req.computed_tok, end):
            return None  # others hold what it would borrow: it waits a step or, if optimistic, for pages
        last = end == whole_tok
        return PrefillChunk(req, req.computed_tok, end, last, last and req.output_tok == 0)

    def _choose_steps(self, rows: Sequence[RequestState], busy: bool) -> int:
        """Decode steps until the next decision: one beside a prefill, few while a request may be admitted."""
        if not rows or busy or self._step_sizes[-1] == 1:
            return 1
        limit = min(
            [e.steps_left if e.slab is not None else e.info.max_output_tok - e.output_tok for e in rows]
        )
        if limit > self.limits.admit_every and self.waiting and self.memory.slots_free:
            limit = min(limit, self.limits.admit_every)
        return self._at_most(limit)

    def _at_most(self, steps: int) -> int:
        return self._step_sizes[max(0, bisect_right(self._step_sizes, steps) - 1)]

    def _grow_rows(
        self, rows: list[RequestState], steps: int, now_s: float
    ) -> tuple[list[RequestState], int]:
        """Allocates `steps` more tokens per row; rows that are preempted for it drop out.

        Where pages are reserved no row is preempted, but several steps at once may be too many. (Optimistic
        rows that first took fewer steps were preempted more often: 75,000 times instead of 1,900 in E11.)
        """
        before = len(self.running)
        for req in rows:
            upto = req.computed_tok + steps  # no row is planned beyond its allowance (see `_choose_steps`)
            if upto <= req.no_growth_until_tok:
                continue  # the common case: this and `_record_tokens` are the innermost bookkeeping
            while self._reserves and steps > 1 and not self.memory.grow(req.kv, req.computed_tok, upto):
                steps = self._at_most(steps // 2)
                upto = req.computed_tok + steps
            while req.kv is not None and not self.memory.grow(req.kv, req.computed_tok, upto):
                self.preempt(self._victim().info.id, now_s)
                if self._window is not None:
                    self._window.shrink(len(self.running))
            if req.kv is not None:
                req.no_growth_until_tok = self._no_growth_until(req.kv)
        rows = rows if len(self.running) == before else [e for e in rows if e.kv is not None]
        return rows, steps

    def _victim(self) -> RequestState:
        """The request whose preemption loses the least work: fewest outputs, then the longest prompt.

        One in a slab would free no full pages, and has to replay its outputs: it comes last.
        """
        rows = [e for e in self.running.values() if e.slab is None or e.kv is None or not e.kv.settled]
        rows = rows or list(self.running.values())
        return min(rows, key=lambda e: (e.output_tok, -e.info.prompt_tok, -e.info.seq))

    def _record_tokens(
        self, rows: Sequence[RequestState], produced: Mapping[RequestId, StepResult], now_s: float
    ) -> list[tuple[RequestState, FinishReason]]:
        """Adds what each row produced; returns the requests that are over, and why."""
        ended: list[tuple[RequestState, FinishReason]] = []
        tokens_of: dict[RequestId, int] = {}
        clients: dict[ClientId, int] = {}
        for req in rows:
            info = req.info
            got = produced.get(info.id)
            if got is None:
                continue
            if got.replayed and got.replayed < req.replay_tok:
                req.computed_tok += got.replayed
                if got.finish:
                    ended.append((req, got.finish))
                continue
            left = info.max_output_tok - req.output_tok
            count = got.count if got.count < left else left
            if count and not req.output_tok:
                req.first_token_s = now_s
                self._log_event(now_s, "first_token", info)
            req.output_tok += count
            if got.ids:
                req.output_ids += got.ids[:count]
            req.computed_tok = info.prompt_tok + req.output_tok - 1
            tokens_of[info.id] = count
            clients[info.client] = clients.get(info.client, 0) + count
            if req.computed_tok >= req.no_growth_until_tok:
                self._computed(req, share=False)
            if got.finish or count == left:
                ended.append((req, got.finish or "length"))
        if tokens_of:
            self.policy.decoded(tokens_of)
            self.log({"t": now_s, "event": "tokens", "counts": clients})
        return ended

    def _computed(self, req: RequestState, *, share: bool) -> None:
        assert req.kv is not None
        tokens = req.all_tokens if share else req.tokens
        self.memory.computed(req.kv, tokens, req.computed_tok, share=share)
        req.no_growth_until_tok = self._no_growth_until(req.kv)

    def _finish(self, req: RequestState, why: FinishReason, now_s: float) -> Output:
        self._computed(req, share=why in ("stop", "length"))
        self._release(req)
        del self.running[req.info.id]
        self.policy.finish(req.info.id)
        if self._window is not None:
            self._window.widen()
        self._log_event(now_s, "finish", req.info, output=req.output_tok)
        return _output(req, why, now_s)

    def _release(self, req: RequestState) -> None:
        self.prefilling.pop(req.info.id, None)
        self._unsettled.pop(req.info.id, None)
        if req.kv is not None:
            self.memory.release(req.kv)
            req.kv, req.no_growth_until_tok = None, 0

    def _log_event(self, now_s: float, event: str, info: RequestInfo, **more: int) -> None:
        self.log({"t": now_s, "event": event, "id": info.id, "client": info.client, **more})


def _prefilled(req: RequestState) -> dict[str, int]:
    return {} if req.prefilled_tok is None else {"prefilled": req.prefilled_tok}


def _output(req: RequestState, why: FinishReason, now_s: float) -> Output:
    return Output(
        id=req.info.id,
        client=req.info.client,
        output_ids=req.output_ids,
        finish_reason=why,
        prompt_tok=req.info.prompt_tok,
        hit_tok=req.hit_tok,
        arrival_s=req.arrival_s,
        admit_s=req.admit_s,
        first_token_s=req.first_token_s,
        finish_s=now_s,
    )
