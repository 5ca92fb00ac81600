"""The cluster as what computes behind the HTTP server: the ingress' decisions carried out on real workers.

Everything happens on the event loop. What workers say and clients ask goes into the `Ingress`; once in a turn
of the loop its outboxes are emptied: requests to workers, stops to workers, deltas to the clients.
"""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from mixattn.spec import ModelConfig
from serving import request_checks
from serving.cluster import messages
from serving.cluster.autoscaler import Autoscaler
from serving.cluster.capacity import CapacityMeter
from serving.cluster.ingress import Ingress
from serving.cluster.live_output import AttemptId
from serving.cluster.workers import WorkerHandle, WorkerSlot, WorkerTimes
from serving.config import EngineConfig
from serving.engine.stats import EngineCounters, EngineStats
from serving.fair.ledger import SCALE
from serving.fair.routers.load_index import WorkerId
from serving.http.backend import Deliver, StepReport
from serving.request import ClientId, Request, RequestId

TICK_S = 0.05  # of the housekeeping
FLUSH_S = 10.0


class WorkerCluster:
    """See the module, and `serving.http.backend.Backend`.

    Args:
      deliver: is told what came of the requests.
      make_handle: a way to run the worker at a place.
      max_live: outputs that a worker may have at once, as a multiple of its slots.
      scaler: starts and drains workers; None: only `add` and `drain` do.

    Attributes:
      slots: workers by place.
    """

    def __init__(
        self,
        deliver: Deliver,
        ingress: Ingress,
        make_handle: Callable[[int], WorkerHandle],
        times: WorkerTimes,
        *,
        max_live: float = 2.0,
        scaler: Autoscaler | None = None,
        described: Mapping[str, Any] | None = None,
    ) -> None:
        self._deliver, self.ingress, self._make_handle, self._times = deliver, ingress, make_handle, times
        self._max_live, self._scaler, self._described = max_live, scaler, dict(described or {})
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        ingress.log = self._tell_listeners
        self.slots: dict[int, WorkerSlot] = {}
        self.meter = CapacityMeter()
        self._slot_of: dict[WorkerId, WorkerSlot] = {}  # those that are up
        self._names: dict[AttemptId, RequestId] = {}
        self._attempts_at: dict[WorkerId, set[AttemptId]] = {}
        self._past = EngineCounters()  # of processes that have ended
        self._pids: dict[int, int] = {}
        self._places = itertools.count()
        self._report = StepReport(0.0)
        self._woken = self._started = self._was_up = self._stopped = False
        self._flushes = itertools.count()
        self._flushing: dict[tuple[int, int], asyncio.Future[bool]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._model: ModelConfig | None = None
        self._config = EngineConfig()
        self._decodes = False

    # ---- workers ----

    def open(self, model: ModelConfig, config: EngineConfig, *, decodes: bool) -> None:
        """From now on requests are checked against this model and the workers' config."""
        self._model, self._config, self._decodes = model, config, decodes
        if not self._started:
            self._started = True
            self._run(self._housekeeping())

    def add(self) -> WorkerSlot:
        """Starts one more worker."""
        place = next(self._places)
        slot = self.slots[place] = WorkerSlot(place, self._make_handle(place), self._times, self)
        slot.begin()
        return slot

    def drain(self, place: int) -> None:
        """The worker gets no more requests, ends those it has, and goes. Raises KeyError if it is none."""
        slot = self.slots[place]
        slot.leaving = True
        if slot.number is not None and slot.up:
            slot.state = "draining"
            self.ingress.drain(slot.number)
        else:
            self._let_go(slot)

    async def end(self) -> None:
        """Ends all workers."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(slot.end() for slot in self.slots.values()))

    @property
    def up(self) -> list[WorkerSlot]:
        """Workers that take requests."""
        return [slot for slot in self.slots.values() if slot.state == "up"]

    @property
    def waiting(self) -> int:
        """Outputs that have no worker."""
        return len(self.ingress.live) - len(self.ingress.router.dispatched)

    # ---- what happens to workers (SlotEvents) ----

    def joined(self, slot: WorkerSlot) -> None:
        pid = slot.hello["pid"]
        if self._pids.get(slot.place) != pid:
            self._keep_counts(slot)
            self._pids[slot.place] = pid
            self.meter.began(slot.place)
        capacity = self.meter.capacity_of[slot.place]
        most = max(1, round(self._max_live * slot.hello["slots"]))
        slot.number = self.ingress.join(capacity=capacity, max_live=most)
        self._slot_of[slot.number] = slot
        self._attempts_at[slot.number] = set()
        self._was_up = True
        self._wake()

    def lost(self, slot: WorkerSlot, why: str) -> None:
        number, slot.number = slot.number, None
        if number is None:
            return
        del self._slot_of[number]
        for attempt in self._attempts_at.pop(number):
            self._names.pop(attempt, None)
        self.ingress.lost(number, time.monotonic())
        if slot.leaving:
            self._let_go(slot)
        self._wake()

    def line(self, slot: WorkerSlot, told: messages.Line) -> None:
        if slot.number is None:
            return
        now_s = time.monotonic()
        for attempt, extend_tok, hit_tok in told.get("a", ()):
            self._admitted(attempt, extend_tok, hit_tok, now_s)
        for row in told.get("d", ()):
            self._delta(slot.number, row, now_s)
        for attempt, why in told.get("r", ()):
            self._refused(attempt, why, now_s)
        if "flushed" in told:
            number, done = told["flushed"]
            if (asked := self._flushing.pop((slot.place, number), None)) is not None and not asked.done():
                asked.set_result(done)
        if "beat" in told:
            self._measure(slot)
        self._wake()

    def _admitted(self, attempt: AttemptId, extend_tok: int, hit_tok: int, now_s: float) -> None:
        name = self._names.get(attempt)
        if name is None:
            self.ingress.counts.dropped += 1
            return
        self.ingress.admitted(name, attempt, extend_tok=extend_tok, hit_tok=hit_tok, now_s=now_s)
        self._report.admitted.append((name, extend_tok, hit_tok))

    def _delta(self, worker: WorkerId, row: Sequence[Any], now_s: float) -> None:
        attempt, number = row[0], row[1]
        name = self._names.get(attempt)
        if name is None:
            self.ingress.counts.dropped += 1
            return
        if row[5] is not None:
            self._forget(worker, attempt)
        self.ingress.reported(name, attempt, number, messages.delta_of(row), now_s)

    def _refused(self, attempt: AttemptId, why: str, now_s: float) -> None:
        """The worker did not take a request that `check` let pass: none would."""
        name = self._names.get(attempt)
        live = self.ingress.live.get(name) if name is not None else None
        if live is not None and live.attempt == attempt:
            self._report.refused.append((live.request.id, why))
            self.ingress.cancel(live.request.id, now_s)

    def _measure(self, slot: WorkerSlot) -> None:
        if slot.stats is None:
            return
        for place, capacity in self.meter.take(slot.place, slot.stats).items():
            other = self.slots.get(place)
            if other is not None and other.number is not None:
                logging.info("worker %d has capacity %.2f now", place, capacity)
                self.ingress.router.set_capacity(other.number, capacity)

    def _keep_counts(self, slot: WorkerSlot) -> None:
        """The process that a worker had before has ended: what it counted stays in the sums."""
        stats, slot.stats = slot.stats, None
        if stats is not None:
            self._past = _sum(self._past, stats)

    # ---- Backend: from the server ----

    @property
    def failed(self) -> str | None:
        if self._stopped:
            return "the cluster is being ended"
        if self.up or not self._was_up:  # before that it starts
            return None
        return "no worker is up; another one is being started"

    def check(self, request: Request) -> None:
        assert self._model is not None
        request_checks.check(request, self._model, self._config, decodes=self._decodes)

    def submit(self, requests: Sequence[Request]) -> None:
        now_s = time.monotonic()
        for request in requests:
            self.ingress.submit(request, now_s)
        self._wake()

    def cancel(self, ids: Sequence[RequestId]) -> None:
        now_s = time.monotonic()
        for id in ids:
            self.ingress.cancel(id, now_s)
        self._wake()

    def stuck_s(self) -> float:
        return 0.0  # a worker whose step is stuck is replaced

    def stop(self, *, wait: bool = True) -> None:
        self._stopped = True

    async def stats(self) -> EngineStats:
        """Sums over the workers, as they last told."""
        told = [slot.stats for slot in self.slots.values() if slot.stats is not None]
        total = self._past
        for stats in told:
            total = _sum(total, stats)
        running = sum(live.admitted for live in self.ingress.live.values())
        pages: dict[Any, tuple[int, int, int, int]] = {}
        for stats in told:
            for kind, counts in stats.pages.items():
                held = pages.get(kind, (0, 0, 0, 0))
                pages[kind] = (*(a + b for a, b in zip(held, counts)),)  # type: ignore[assignment]
        return EngineStats(
            programs=max((stats.programs for stats in told), default=0),
            compile_s=told[0].compile_s if told else {},
            pages=pages,
            bytes_held=sum(stats.bytes_held for stats in told),
            running=running,
            waiting=len(self.ingress.live) - running,
            slots=sum(slot.hello["slots"] for slot in self._slot_of.values()),
            policy_failure=next((s.policy_failure for s in told if s.policy_failure), None),
            **{field.name: getattr(total, field.name) for field in dataclasses.fields(EngineCounters)},
        )

    async def served(self) -> Mapping[ClientId, int]:
        return {client: amount // SCALE for client, amount in self.ingress.queue.served().items()}

    async def flush(self) -> bool:
        if self.ingress.live:
            return False
        number = next(self._flushes)
        asked = []
        for slot in self._slot_of.values():
            self._flushing[slot.place, number] = answer = asyncio.get_running_loop().create_future()
            asked.append(answer)
            slot.send(messages.command("flush", number))
        try:
            async with asyncio.timeout(FLUSH_S):
                done = all([await answer for answer in asked])
        except TimeoutError:
            done = False
        for slot in self._slot_of.values():
            self._flushing.pop((slot.place, number), None)
            if slot.number is not None:
                self.ingress.router.forget_prefixes(slot.number)
        return done

    def described(self) -> dict[str, Any]:
        return {**self._described, "worker": dataclasses.asdict(self._config)}

    # ---- inside ----

    def _wake(self) -> None:
        if not self._woken and not self._stopped:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        """Carries out what the ingress has decided."""
        self._woken = False
        ingress = self.ingress
        for send in ingress.dispatch(time.monotonic()):
            self._names[send.attempt] = send.request.id
            self._attempts_at[send.worker].add(send.attempt)
            self._slot_of[send.worker].send(messages.run_command(*send[1:]))
        stops, ingress.stops = ingress.stops, []
        for stop in stops:
            self._forget(stop.worker, stop.attempt)
            if (slot := self._slot_of.get(stop.worker)) is not None:
                slot.send(messages.command("stop", stop.attempt))
        report, self._report = self._report, StepReport(time.monotonic())
        report.deltas, ingress.deltas = ingress.deltas, []
        if report:
            report.at_s = time.monotonic()
            self._count_tokens(report)
            self._deliver(report)

    def _forget(self, worker: WorkerId, attempt: AttemptId) -> None:
        self._names.pop(attempt, None)
        if (held := self._attempts_at.get(worker)) is not None:
            held.discard(attempt)

    def _count_tokens(self, report: StepReport) -> None:
        if not self.listeners:
            return
        counts: dict[ClientId, int] = {}
        for delta in report.deltas:
            counts[delta.client] = counts.get(delta.client, 0) + len(delta.ids)
        if counts := {client: count for client, count in counts.items() if count}:
            self._tell_listeners({"t": report.at_s, "event": "tokens", "counts": counts})

    def _tell_listeners(self, event: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(event)

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            for slot in list(self.slots.values()):
                slot.tick(now_s)
            self.ingress.expire(now_s)
            for number in self.ingress.drained:
                self._let_go(self._slot_of[number])
            if self._scaler is not None:
                self._scale(now_s)
            self._wake()

    def _scale(self, now_s: float) -> None:
        assert self._scaler is not None
        slots = [slot for slot in self.slots.values() if slot.state != "draining"]
        room = [max(1, round(self._max_live * slot.hello["slots"])) for slot in slots if slot.hello]
        live = len(self.ingress.router.dispatched)
        mean = sum(room) // len(room) if room else 1
        by = self._scaler.decide(now_s, workers=len(slots), waiting=self.waiting, live=live, room=mean)
        if by > 0:
            logging.warning("a worker more: %d outputs wait", self.waiting)
            self.add()
        elif by < 0:
            last = max(slots, key=lambda slot: slot.place)
            logging.warning("worker %d is let go: %d outputs are live", last.place, live)
            self.drain(last.place)

    def _let_go(self, slot: WorkerSlot) -> None:
        if self.slots.pop(slot.place, None) is not None:
            self._keep_counts(slot)
            self.meter.gone(slot.place)
            self._run(slot.end())

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _sum(a: EngineCounters, b: EngineCounters) -> EngineCounters:
    """Counters added up; `finished` by reason."""
    total = EngineCounters()
    for field in dataclasses.fields(EngineCounters):
        if field.name == "finished":
            reasons = {**a.finished, **b.finished}
            total.finished = {why: a.finished.get(why, 0) + b.finished.get(why, 0) for why in reasons}
        else:
            setattr(total, field.name, getattr(a, field.name) + getattr(b, field.name))
    return total
