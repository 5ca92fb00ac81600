"""The engine: scheduler decisions in, tokens out. The only place where host state and device state meet.

    engine = Engine(model, EngineConfig(max_slots=8, policy="dlpm"))
    engine.submit(Request(client="a", prompt_ids=[...], sampling=Sampling(max_tokens=32)))
    while engine.live:
        for delta in engine.step(): ...

One step: plan (host), prefill and decode programs (device), read tokens back (the one wait), commit (host).
A program that fails ends the requests of its step and no others.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import logging

from mixattn.cache import FULL, Paged
from mixattn.generation import prepared
from mixattn.model import Transformer
from mixattn.quantize import quantize
from serving import fair, request_checks
from serving.config import EngineConfig
from serving.engine import slab_layout
from serving.engine.deadlines import Deadlines
from serving.engine.detokenizer import Decode
from serving.engine.device_state import DeviceState
from serving.engine.invariants import InvariantChecker
from serving.engine.kv_layout import KV_KINDS, KVKind, KVLayout, span_tok
from serving.engine.model_runner import InFlightStep, ModelRunner, RequestFault
from serving.engine.output import OutputStream
from serving.engine.plan import RequestState, StepPlan
from serving.engine.policy_fallback import FallbackPolicy
from serving.engine.program_cache import ProgramCache
from serving.engine.programs import Programs, chunk_sizes, feature_sets
from serving.engine.scheduler import Scheduler
from serving.engine.slab_layout import SlabLayout
from serving.engine.slab_programs import SlabPrograms, SlabStack
from serving.engine.slab_runner import SlabRunner
from serving.engine.stacks import Stack
from serving.engine.stats import EngineCounters, EngineStats
from serving.kvcache.manager import UNSHARED, KVCacheManager
from serving.kvcache.slab_plan import SlabPlan
from serving.kvcache.tokens import TokenIds
from serving.request import Delta, Output, Request, RequestId, RequestInfo, Sampling

PRIORITY_STEP = 2**40  # places in the order of arrival that one step of priority is worth


class Engine:
    """Continuous batching of one model on one device.

    Args:
      model: its parameters are used in place, never changed.
      clock: seconds, monotonic.
      log: called with every scheduling event as a JSON-ready dict.
      report: called with each program's name and compile seconds during start-up.
      decode: token ids -> text; without it outputs have no text and stop texts are refused.
      programs: compiled programs of another engine of the same shapes, shared instead of compiled.
      program_cache: where compiled programs are kept from start to start; None: nowhere.
      kv_kinds: the kinds of page groups; the first whose device side takes a layer stores its K/V.

    Raises:
      ValueError: the configuration cannot serve (see `EngineConfig.check`, `Programs`).
    """

    _runner_class: type[ModelRunner] = ModelRunner

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
        report: Callable[[str, float], None] = lambda name, seconds: None,
        decode: Decode | None = None,
        programs: Programs | None = None,
        program_cache: ProgramCache | None = None,
        kv_kinds: Sequence[KVKind] = KV_KINDS,
    ):
        config.check()
        if (last := max(config.eos_ids, default=0)) >= model.config.vocab_size:
            raise ValueError(f"eos_ids name token {last} of a vocabulary of {model.config.vocab_size}")
        model = prepared(quantize(model, config.quantize), config.max_request_tok)
        self.config, self.clock, self._log, self._decode = config, clock, log, decode
        self.model_config, limits = model.config, config.limits
        layout = KVLayout.of(model.config, config, kv_kinds)
        self.kinds = layout.names
        self.slabs = SlabLayout.of(model.config, config) if config.keep.slab_tok else None
        self.memory = KVCacheManager(
            layout.groups,
            page_tok=config.page_size,
            max_slots=config.max_slots,
            max_tok=config.max_request_tok,
            span_tok=span_tok(config),
            step_tok=limits.step_tok,
            reuse=config.reuse,
            working_votes=self.slabs.working_votes(config) if self.slabs else 0,
            snapshots=config.keep.snapshots if self.slabs else 0,
        )
        self.scheduler = Scheduler(self._policy, self.memory, limits, self._record)
        cache = layout.cache(model.config, config)
        self._page_bytes = layout.page_bytes(model.config, cache)
        self.programs = self._make_programs(
            model,
            cache,
            slots=config.max_slots,
            buckets=[(r, c) for r in config.prefill_rows for c in chunk_sizes(config)],
            max_steps=max(limits.decode_steps),
            decode_rows=config.decode_rows,
            feature_sets=feature_sets(config, model.config.vocab_size),
            layers_per_program=config.layers_per_program,
            stack=self._stack(model),
        )
        with ThreadPoolExecutor(1) as beside:  # memory is touched for the first time while programs load
            zeroed = beside.submit(self.programs.fresh_state)
            if programs is None:
                self.programs.compile(report, program_cache)
            else:
                self.programs.borrow(programs)
            self.state: DeviceState = zeroed.result()
        self.streams: dict[RequestId, OutputStream] = {}  # by the name an output is scheduled under
        self._parts: dict[RequestId, list[RequestId]] = {}  # request -> the names of its live outputs
        tables = dict(zip(self.kinds, self.memory.tables))
        runner_class = SlabRunner if self.slabs else self._runner_class
        self._runner = runner_class(self.programs, tables, self.streams, max(config.prefill_rows))
        self._in_flight: InFlightStep | None = None
        self._deadlines = Deadlines(self.streams)
        self._seq = itertools.count()
        self._done: list[Delta] = []
        self._counts = EngineCounters()
        self._checker = InvariantChecker(self) if config.debug else None

    # ---- requests ----

    def submit(self, request: Request) -> RequestId:
        """Queues a request; returns its id.

        Raises:
          ValueError: the id is live already, the request can never fit, or it needs a feature that is not
            compiled in. Nothing is queued then.
        """
        request = request if request.id else self._named(request)
        if taken := self._taken(request):
            raise ValueError(f"request id {taken[0]!r} is live already")
        plan = self._planned(request)
        try:
            for index, name in enumerate(request.names):
                self._queue(request, name, index, plan)
        except Exception:
            self._undo_submit([request.id])
            raise
        return request.id

    def check(self, request: Request) -> None:
        """Raises ValueError if `request` can never be served here, whatever else is live."""
        settles = {"settles_tok": len(request.prompt_ids)} if self._planned(request) else {}
        most = len(request.prompt_ids) + request.sampling.max_tokens
        if why := self.memory.never_fits(most, **settles):
            raise ValueError(f"request {request.id!r} of {request.client!r} {why}")

    def cancel(self, id: RequestId) -> bool:
        """Ends a request; False if it is not live. The next step returns its last delta."""
        return sum(self._drop(name, "cancel") for name in list(self._parts.get(id, ()))) > 0

    def set_weight(self, client: str, weight: float) -> None:
        """From now on the client has this share of the server.

        Raises:
          ValueError: the policy does not share by weight, or the weight is not above 0.
        """
        self.scheduler.set_weight(client, weight, self.clock())

    def fail_all(self) -> None:
        """Ends every live request as `error` and starts from a fresh state, after `step` itself raised."""
        self._counts.resets += 1
        self._in_flight = None
        for name in list(self.streams):
            self._drop(name, "error")
        self.memory.clear_cache()
        self.state = self.programs.fresh_state()

    def take_done(self) -> list[Delta]:
        """Deltas that the next step would return first."""
        done, self._done = self._done, []
        return done

    @property
    def live(self) -> bool:
        """Whether any request is unfinished or has a delta to fetch."""
        return not self.scheduler.idle or bool(self._done)

    def run(self, requests: Iterable[Request]) -> list[Output]:
        """Serves `requests`, and all else that is live, to the end; outputs in request order, `n` by index.

        Raises:
          ValueError: as `submit`; none of them is queued then.
        """
        order: dict[RequestId, int] = {}
        try:
            for i, request in enumerate(requests):
                order[self.submit(request)] = i
        except Exception:
            self._undo_submit(order)
            raise
        outputs: list[Output] = []
        while self.live:
            outputs += [d.output for d in self.step() if d.output is not None and d.id in order]
        return sorted(outputs, key=lambda o: (order[o.id], o.index))

    # ---- the step ----

    def step(self) -> list[Delta]:
        """Runs one step; returns each request's new output, in order within a request only."""
        began, waited = time.perf_counter(), 0.0
        now_s = self.clock()
        for name in self._deadlines.passed(now_s):
            self._drop(name, "deadline")
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None and (plan := self.scheduler.plan(now_s)):
            in_flight = self._launch(plan)
        if in_flight is not None:
            if (
                self.config.overlap
                and not self._bound_by_grammar(in_flight)
                and (plan := self.scheduler.ahead(in_flight.plan))
            ):
                self._in_flight = self._launch(plan)
                self._counts.ahead += 1
            sent = time.perf_counter()
            finished = self._wait_for(in_flight)
            waited = time.perf_counter() - sent
            if finished is not None:
                self._commit(finished)
        if self._checker is not None:
            self._checker.after_step()
        self._counts.device_s += waited
        self._counts.host_s += time.perf_counter() - began - waited
        done, self._done = self._done, []
        return done

    def stats(self) -> EngineStats:
        pages = {}
        for g, kind in enumerate(self.kinds):
            total, free = self.memory.pools[g].num_pages - 1, len(self.memory.pools[g])
            cached = self.memory.tree.pages[g].evictable
            pages[kind] = (total - free - cached, cached, free, total)
        held = sum(self._page_bytes[k] * (used + cached) for k, (used, cached, _, _) in pages.items())
        votes, kept = self.memory.votes, self.state.kept
        return EngineStats(
            slab_bytes=sum(slab.nbytes for slab in kept.slabs.values()) if kept else 0,
            votes_bytes=sum(votes.nbytes for votes in kept.votes.values()) if kept else 0,
            snapshots=votes.stored,
            hits_lost=self.memory.hits_lost,
            layers_for_scores=self.slabs.layers_for_scores if self.slabs else 0,
            programs=len(self.programs.compile_s),
            compile_s=dict(self.programs.compile_s),
            pages=pages,
            bytes_held=held,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            slots=self.config.max_slots,
            policy_failure=self.fallback.failure,
            **dataclasses.asdict(self._counts),
        )

    def _stack(self, model: Transformer) -> Stack | None:
        """How the layers run; None = as the configuration says."""
        return SlabStack(model, self.slabs) if self.slabs else None

    def _make_programs(self, model: Transformer, cache: Paged, **options: Any) -> Programs:
        if self.slabs is None:
            return Programs(model, cache, **options)
        votes_tok = cache.tables[FULL.name].shape[1] * self.config.page_size
        slabs = slab_layout.abstract_state(self.slabs, model.config, self.config, votes_tok)
        return SlabPrograms(model, cache, slabs=slabs, layout=self.slabs, **options)

    # ---- inside: requests ----

    def _planned(self, request: Request) -> SlabPlan | None:
        """How the request's keys are cut; raises ValueError if it asks for what this engine cannot do."""
        decodes = self._decode is not None
        request_checks.check_features(request, self.model_config, self.config, decodes=decodes)
        return self.slabs.plan(request) if self.slabs else None

    def _named(self, request: Request) -> Request:
        """The same request under an unused id."""
        while self._taken(named := dataclasses.replace(request, id=f"r{next(self._seq)}")):
            pass
        return named

    def _taken(self, request: Request) -> list[RequestId]:
        """The names it would be scheduled under that are live already."""
        return [name for name in request.names if name in self._parts or name in self.streams]

    def _undo_submit(self, ids: Iterable[RequestId]) -> None:
        """Undoes `submit` for these ids, except in the log."""
        for id in ids:
            for name in list(self._parts.get(id, ())):
                self._drop(name, "cancel", tell=False)
            self._done = [delta for delta in self._done if delta.id != id]

    def _queue(self, request: Request, name: str, index: int, plan: SlabPlan | None) -> None:
        seq = next(self._seq) - request.priority * PRIORITY_STEP
        sampling, now_s = request.sampling, self.clock()
        info = RequestInfo(
            name,
            request.client,
            seq,
            len(request.prompt_ids),
            sampling.max_tokens,
            program=request.program,
        )
        cache_salt = UNSHARED if sampling.prompt_logprobs is not None else request.cache_salt
        state = RequestState(info, TokenIds(request.prompt_ids), cache_salt, now_s)
        state.output_ids, state.output_tok = list(request.resume_ids), len(request.resume_ids)
        state.slab, state.forced_ids = plan, request.forced_ids
        accepted = self.scheduler.submit(state, now_s)
        self.streams[name] = OutputStream(request, name, index, self._stops(sampling), self._decode)
        self._parts.setdefault(request.id, []).append(name)
        self._counts.arrived += 1
        if not accepted:
            self._end(name, _refused(info, now_s))
        elif request.deadline_s is not None:
            self._deadlines.add(now_s + request.deadline_s, self.streams[name])

    def _drop(self, name: str, why: Any, tell: bool = True) -> bool:
        output = self.scheduler.cancel(name, self.clock(), why)
        if output is not None and tell:
            self._end(name, output)
        elif output is not None:
            self._close(name)
            self._counts.arrived -= 1
        return output is not None

    def _end(self, name: str, output: Output) -> None:
        delta = self._close(name).delta(output.output_ids, output)
        assert delta is not None
        self._done.append(delta)
        why = output.finish_reason
        self._counts.finished[why] = self._counts.finished.get(why, 0) + 1

    def _close(self, name: RequestId) -> OutputStream:
        stream = self.streams.pop(name)
        parts = self._parts[stream.request.id]
        parts.remove(name)
        if not parts:
            del self._parts[stream.request.id]
        return stream

    def _stops(self, sampling: Sampling) -> tuple[int, ...]:
        return sampling.stop_ids + (() if sampling.ignore_eos else self.config.eos_ids)

    # ---- inside: a step ----

    def _launch(self, plan: StepPlan) -> InFlightStep | None:
        self._counts.decode_steps += plan.steps if plan.decode else 0
        self._counts.decode_rows += plan.steps * len(plan.decode)
        try:
            self.state, in_flight = self._runner.launch(self.state, plan)
            return in_flight
        except RequestFault as fault:
            self._drop_faulty(fault)
            return None
        except Exception as why:
            self._reset(plan, why)
            return None

    def _bound_by_grammar(self, in_flight: InFlightStep) -> bool:
        """Whether a row's next mask depends on the token that the running step samples."""
        rows = [stream for req in in_flight.plan.decode if (stream := self.streams.get(req.info.id))]
        return any(stream.grammar is not None for stream in rows)

    def _wait_for(self, in_flight: InFlightStep) -> InFlightStep | None:
        try:
            return in_flight.wait()
        except Exception as why:
            self._reset(in_flight.plan, why)
            return None

    def _commit(self, in_flight: InFlightStep) -> None:
        produced = self._runner.read(in_flight)
        if self.slabs is not None:
            slab_layout.count(self._counts, in_flight.plan, produced, self.model_config.n_kv_heads)
        outputs = self.scheduler.commit(in_flight.plan, produced, self.clock())
        self._counts.steps += 1
        for output in outputs:
            self._end(output.id, output)
        for req in [c.req for c in in_flight.plan.chunks if c.samples] + list(in_flight.plan.decode):
            if req.kv is not None and (delta := self.streams[req.info.id].delta(req.output_ids)):
                self._done.append(delta)

    def _drop_faulty(self, fault: RequestFault) -> None:
        """Ends a request that the host could not prepare. No program ran; the others run again."""
        logging.error("request %r cannot be prepared and ends: %r", fault.name, fault.why)
        self._drop(fault.name, "error")
        self.scheduler.drop_all_pages(self.clock())

    def _reset(self, plan: StepPlan, why: Exception) -> None:
        """Ends the requests of a failed program; restarts the others on a new state (the old may be gone)."""
        logging.error("a step failed, its requests end: %r", why)
        self._counts.resets += 1
        self._in_flight = None
        for req in [c.req for c in plan.chunks] + list(plan.decode):
            if req.kv is not None:
                self._drop(req.info.id, "error")
        self.scheduler.drop_all_pages(self.clock())
        self.state = self.programs.fresh_state()

    def _record(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "admit":
                self._counts.prompt_tok += event["extend"] + event["hit"]
                self._counts.hit_tok += event["hit"]
            case "tokens":
                self._counts.output_tok += sum(event["counts"].values())
            case "preempt":
                self._counts.preemptions += 1
        self._log(event)

    def _policy(self, match: Callable[[RequestInfo], int]) -> FallbackPolicy:
        options = dict(self.config.policy_options)
        if "match" in fair.options(self.config.policy):
            options["match"] = match
        self.fallback = FallbackPolicy(fair.make(self.config.policy, **options))
        return self.fallback


def _refused(info: RequestInfo, now_s: float) -> Output:
    return Output(
        id=info.id,
        client=info.client,
        output_ids=[],
        finish_reason="refused",
        prompt_tok=info.prompt_tok,
        hit_tok=0,
        arrival_s=now_s,
        admit_s=-1.0,
        first_token_s=-1.0,
        finish_s=now_s,
    )
