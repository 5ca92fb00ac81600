"""The engine: scheduler decisions in, tokens out. The only place where host state and device state meet.

    engine = Engine(model, EngineConfig(max_slots=8, policy="dlpm"))
    engine.submit(Request(client="a", prompt_ids=[...], sampling=Sampling(max_tokens=32)))
    while engine.live:
        for delta in engine.step(): ...

One step: plan (host), prefill and decode programs (device), read tokens back (the one wait), commit (host).
"""

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixattn.model import Transformer
from mixattn.paging import Kind, Paged
from serving import fair
from serving.config import STOP_IDS, EngineConfig
from serving.memory import PagedMemory
from serving.pages import Group
from serving.programs import NOT_FINITE, PrefillBatch, Programs, State
from serving.request import Ask, Delta, Output, Request, RequestId, Sampling
from serving.scheduler import Chunk, Entry, Plan, Produced, Scheduler
from serving.tokens import Ids


@dataclass(frozen=True)
class Stats:
    """What the engine holds and has done since it started.

    Attributes:
      programs, compile_s: compiled programs and the seconds each took. Fixed after start-up.
      pages: by kind, (in use by requests, cached, free, total).
      bytes_held: KV bytes of the pages in use by requests or cached.
      prompt_tok, hit_tok, output_tok: tokens admitted, of those found in the cache, produced.
      host_s, device_s: where step time went: scheduling and bookkeeping, or waiting for programs.
    """

    programs: int
    compile_s: Mapping[str, float]
    pages: Mapping[Kind, tuple[int, int, int, int]]
    bytes_held: int
    running: int
    waiting: int
    steps: int
    prompt_tok: int
    hit_tok: int
    output_tok: int
    preemptions: int
    host_s: float
    device_s: float


class Engine:
    """Continuous batching of one model on one device.

    Args:
      model: its parameters are used in place, never changed.
      clock: seconds, never going back.
      log: hears every scheduling event as a JSON-ready dict.
      report: hears each program's name and compile seconds during start-up.

    Raises:
      ValueError: the configuration cannot serve (see `EngineConfig.check`, `Programs`).
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
        report: Callable[[str, float], None] = lambda name, seconds: None,
    ):
        config.check()
        self.config, self.clock, self._log = config, clock, log
        limits = config.limits
        self._span = max(limits.chunk_tok, *limits.decode_steps)
        self.kinds, groups = self._groups(model)
        self.memory = PagedMemory(
            groups,
            page_tok=config.page_size,
            max_slots=config.max_slots,
            max_tok=config.max_request_tok,
            span_tok=self._span,
            reuse=config.reuse,
        )
        self.scheduler = Scheduler(self._policy, self.memory, limits, self._record)
        cache = Paged.init(
            model.config,
            pages={k: g.num_pages for k, g in zip(self.kinds, groups)},
            page_size=dict.fromkeys(self.kinds, config.page_size),
            batch=0,
            table_pages={k: t.shape[1] for k, t in zip(self.kinds, self.memory.tables)},
        )
        self._page_bytes = {
            kind: sum(cache.pools[o].nbytes for o in owners) // group.num_pages
            for kind, group, owners in zip(self.kinds, groups, self._owners(model))
        }
        self.programs = Programs(
            model,
            cache,
            slots=config.max_slots,
            buckets=[(r, c) for r in config.prefill_rows for c in _chunk_sizes(limits.chunk_tok)],
            most_steps=max(limits.decode_steps),
        )
        self.programs.compile(report)
        self.state: State = self.programs.fresh_state()
        self._requests: dict[RequestId, Request] = {}
        self._reported: dict[RequestId, int] = {}
        self._seq = itertools.count()
        self._done: list[Delta] = []
        self._counts = {"steps": 0, "prompt_tok": 0, "hit_tok": 0, "output_tok": 0, "preemptions": 0}
        self._host_s = self._device_s = 0.0

    # ---- requests ----

    def submit(self, request: Request) -> RequestId:
        """Queues a request; returns its id.

        Raises:
          ValueError: the id is live already, the request can never fit, or a stop id is too many.
        """
        sampling = request.sampling
        id = request.id or f"r{next(self._seq)}"
        if len(self._stops(sampling)) > STOP_IDS:
            raise ValueError(f"request {id!r} has {len(self._stops(sampling))} stop ids; at most {STOP_IDS}")
        ask = Ask(id, request.client, next(self._seq), len(request.prompt_ids), sampling.max_tokens)
        now = self.clock()
        entry = Entry(ask, Ids(request.prompt_ids), request.salt, now)
        self._requests[id] = request
        self._reported[id] = 0
        try:
            accepted = self.scheduler.submit(entry, now)
        except ValueError:
            del self._requests[id], self._reported[id]
            raise
        if not accepted:
            self._end(_refused(ask, now))
        return id

    def cancel(self, id: RequestId) -> bool:
        """Ends a request; False if it is not live. Its last delta comes with the next step."""
        output = self.scheduler.cancel(id, self.clock())
        if output is not None:
            self._end(output)
        return output is not None

    @property
    def live(self) -> bool:
        """Whether any request is unfinished or has a delta to fetch."""
        return not self.scheduler.idle or bool(self._done)

    def run(self, requests: Iterable[Request]) -> list[Output]:
        """Serves requests to the end; outputs in request order."""
        ids = [self.submit(r) for r in requests]
        outputs: dict[RequestId, Output] = {}
        while self.live:
            outputs |= {d.id: d.output for d in self.step() if d.output is not None}
        return [outputs[id] for id in ids]

    # ---- the step ----

    def step(self) -> list[Delta]:
        """Runs one step; returns what it brought each request, in no order but each request's own."""
        began = time.perf_counter()
        waited = 0.0
        if plan := self.scheduler.plan(self.clock()):
            handles = self._dispatch(plan)
            sent = time.perf_counter()
            answers = [np.asarray(h) for h in handles]
            waited = time.perf_counter() - sent
            produced = self._read(plan, answers)
            outputs = self.scheduler.commit(plan, produced, self.clock())
            self._counts["steps"] += 1
            self._collect(plan, outputs)
        self._device_s += waited
        self._host_s += time.perf_counter() - began - waited
        done, self._done = self._done, []
        return done

    def stats(self) -> Stats:
        pages = {}
        for g, kind in enumerate(self.kinds):
            total, free = self.memory.pools[g].num_pages - 1, len(self.memory.pools[g])
            cached = self.memory.tree.evictable[g]
            pages[kind] = (total - free - cached, cached, free, total)
        held = sum(self._page_bytes[k] * (used + cached) for k, (used, cached, _, _) in pages.items())
        return Stats(
            programs=len(self.programs.compile_s),
            compile_s=dict(self.programs.compile_s),
            pages=pages,
            bytes_held=held,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            host_s=self._host_s,
            device_s=self._device_s,
            **self._counts,
        )

    # ---- inside ----

    def _dispatch(self, plan: Plan) -> list:
        """Starts the step's programs; returns their answers, not waited for."""
        handles = []
        for chunks in _batches(plan.chunks, max(self.config.prefill_rows)):
            self.state, next_R = self.programs.prefill(self.state, self._prefill_batch(chunks))
            handles.append(next_R)
        if plan.decode:
            left_B = np.zeros(self.config.max_slots, np.int32)
            for entry in plan.decode:
                left_B[entry.slot] = min(plan.steps, entry.left_tok)
            tables = {k: t.copy() for k, t in zip(self.kinds, self.memory.tables)}
            self.state, out_NB = self.programs.decode(self.state, tables, left_B, plan.steps)
            handles.append(out_NB)
        return handles

    def _prefill_batch(self, chunks: Sequence[Chunk]) -> PrefillBatch:
        shape = self.programs.bucket(len(chunks), max(c.end - c.start for c in chunks))
        batch = self.programs.blank_prefill(*shape)
        for r, chunk in enumerate(chunks):
            entry, count = chunk.entry, chunk.end - chunk.start
            tokens = entry.all_tokens
            assert isinstance(tokens, Ids)
            batch.tokens_RC[r, :count] = tokens.ids[chunk.start : chunk.end]
            batch.start_R[r], batch.count_R[r] = chunk.start, count
            for kind, table in zip(self.kinds, self.memory.tables):
                batch.tables[kind][r] = table[entry.slot]
            if chunk.last:
                self._install(batch, r, entry)
        return batch

    def _install(self, batch: PrefillBatch, r: int, entry: Entry) -> None:
        sampling = self._requests[entry.ask.id].sampling
        batch.slot_R[r] = entry.slot
        if entry.output_ids:
            batch.known_R[r] = entry.output_ids[-1]
        seed = sampling.seed if sampling.seed is not None else zlib.crc32(entry.ask.id.encode())
        batch.knobs_R.set(r, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, seed)
        stops = self._stops(sampling)
        batch.stop_RE[r, : len(stops)] = stops

    def _read(self, plan: Plan, answers: list[np.ndarray]) -> dict[RequestId, Produced]:
        produced = {}
        batches = _batches(plan.chunks, max(self.config.prefill_rows))
        for chunks, next_R in zip(batches, answers):
            for r, chunk in enumerate(chunks):
                if chunk.samples:
                    produced[chunk.entry.ask.id] = self._judge(chunk.entry, next_R[r : r + 1])
        for entry in plan.decode:
            produced[entry.ask.id] = self._judge(entry, answers[-1][:, entry.slot])
        return produced

    def _judge(self, entry: Entry, column: np.ndarray) -> Produced:
        """Tokens of one row (-1 is none), and whether a stop id or broken logits ended it."""
        ids = column[column != -1].tolist()
        if ids and ids[-1] == NOT_FINITE:
            return Produced(len(ids) - 1, ids[:-1], "error")
        stopped = bool(ids) and ids[-1] in self._stops(self._requests[entry.ask.id].sampling)
        return Produced(len(ids), ids, "stop" if stopped else None)

    def _collect(self, plan: Plan, outputs: list[Output]) -> None:
        for entry in [c.entry for c in plan.chunks if c.samples] + list(plan.decode):
            id = entry.ask.id
            if id in self.scheduler.running and len(entry.output_ids) > self._reported[id]:
                self._done.append(Delta(id, entry.ask.client, entry.output_ids[self._reported[id] :]))
                self._reported[id] = len(entry.output_ids)
        for output in outputs:
            self._end(output)

    def _end(self, output: Output) -> None:
        new = output.output_ids[self._reported.pop(output.id) :]
        del self._requests[output.id]
        self._done.append(Delta(output.id, output.client, new, output))

    def _stops(self, sampling: Sampling) -> tuple[int, ...]:
        return sampling.stop_ids + (() if sampling.ignore_eos else self.config.eos_ids)

    def _record(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "admit":
                self._counts["prompt_tok"] += event["extend"] + event["hit"]
                self._counts["hit_tok"] += event["hit"]
            case "tokens":
                self._counts["output_tok"] += sum(event["counts"].values())
            case "preempt":
                self._counts["preemptions"] += 1
        self._log(event)

    def _policy(self, match: Callable[[Ask], int]):
        options = dict(self.config.policy_options)
        if "match" in fair.options(self.config.policy):
            options["match"] = match
        return fair.make(self.config.policy, **options)

    def _groups(self, model: Transformer) -> tuple[list[Kind], list[Group]]:
        """Page groups of the model: full owners, then sliding ones."""
        config = self.config
        kinds: list[Kind] = []
        groups: list[Group] = []
        page, slots = config.page_size, config.max_slots
        whole = -(-config.max_request_tok // page)
        windows = {layer.window for layer in model.config.layers}
        if None in windows:
            kinds.append("full")
            groups.append(Group(None, config.num_pages or slots * whole + 1))
        for window in sorted(w for w in windows if w is not None):
            kinds.append("sliding")
            most = min(whole, -(-(window + self._span - 2) // page) + 1)
            groups.append(Group(window, config.window_pages or 2 * slots * most + 1))
        return kinds, groups

    def _owners(self, model: Transformer) -> list[list[int]]:
        layers = [model.config.layers[o] for o in model.config.owners]
        return [[x.index for x in layers if (x.window is None) == (kind == "full")] for kind in self.kinds]


def _chunk_sizes(most: int) -> list[int]:
    """16, 64, 256, ... and the chunk size itself."""
    sizes = [16 * 4**i for i in range(8) if 16 * 4**i < most]
    return [*sizes, most]


def _batches(chunks: Sequence[Chunk], most: int) -> list[Sequence[Chunk]]:
    return [chunks[i : i + most] for i in range(0, len(chunks), most)]


def _refused(ask: Ask, now_s: float) -> Output:
    return Output(
        id=ask.id,
        client=ask.client,
        output_ids=[],
        finish_reason="refused",
        prompt_tok=ask.prompt_tok,
        hit_tok=0,
        arrival_s=now_s,
        admit_s=-1.0,
        first_token_s=-1.0,
        finish_s=now_s,
    )
