"""The table of live requests before many workers: a state machine without clocks, sockets or processes.

A driver tells what happened (a request came, a worker joined or was lost, a worker reported) and carries out
what is found in the outboxes: `dispatch` returns what to send to workers, `stops` what to take from them, and
`deltas` is for the clients.

  * Requests wait here, in the order of a policy (VTC among clients by default), while no worker has room; the
    router alone decides which worker gets one. The queue charges whole prompts; hits are the router's and the
    workers' matter.
  * A request whose worker is lost, or whose stream breaks, goes back to its place in the queue and is sent
    again with the tokens its client has (`Request.resume_ids`), at most `max_tries` times in all; then it
    ends with `error`.
  * Each dispatch is an attempt with a number of its own. A report counts only if it is the next one of its
    output's present attempt: late ones and repeated ones are dropped, and after a gap the attempt is
    withdrawn. So no client gets a token twice, or misses one.
"""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving import fair
from serving.cluster.live_output import AttemptId, LiveOutput, Send, Stop, token_bytes
from serving.fair.policy import Policy
from serving.fair.routers.base import Router
from serving.fair.routers.load_index import WorkerId
from serving.request import Delta, FinishReason, Output, Request, RequestId

PRIORITY_STEP = 2**40  # places in the order of arrival that one step of priority is worth, as in the engine
BROKEN: tuple[FinishReason, ...] = ("cancel", "error")  # ends that a worker decides on and nobody asked for


@dataclass
class IngressCounters:
    """Sums since the start.

    Attributes:
      dispatched, again: attempts, and those of them that were not an output's first.
      dropped: reports that were late or came twice.
      gaps: attempts withdrawn because a report was missing.
      failed: outputs that ended with `error` after `max_tries`.
    """

    dispatched: int = 0
    again: int = 0
    dropped: int = 0
    gaps: int = 0
    failed: int = 0


class Ingress:
    """See the module.

    Args:
      router: without workers so far; they join here.
      queue: order of what waits; None: `vtc`.
      block_tok: tokens of a block of the router's prefixes: the workers' page size.
      max_tries: attempts that an output may have.
      log: is told when an output arrives, is taken back while it runs, and ends, in the engine's format.

    Attributes:
      live: outputs by the name they are scheduled under.
    """

    def __init__(
        self,
        router: Router,
        queue: Policy | None = None,
        *,
        block_tok: int = 16,
        max_tries: int = 3,
        log: Callable[[dict[str, Any]], None] = lambda event: None,
    ) -> None:
        if max_tries < 1 or block_tok < 1:
            raise ValueError(f"max_tries is {max_tries} and block_tok {block_tok}; both must be at least 1")
        self.router = router
        self.queue: Policy = fair.make("vtc") if queue is None else queue
        self.live: dict[RequestId, LiveOutput] = {}
        self._names: dict[RequestId, dict[RequestId, None]] = {}  # by request, those of its live outputs
        self.counts = IngressCounters()
        self.log = log
        self.stops: list[Stop] = []
        self.deltas: list[Delta] = []
        self._block_tok, self._max_tries = block_tok, max_tries
        self._seq, self._attempts, self._workers = itertools.count(), itertools.count(), itertools.count()
        self._deadlines: list[tuple[float, RequestId]] = []  # a heap; entries of ended outputs stay in it

    # ---- workers ----

    def join(self, *, capacity: float = 1.0, max_live: int | None = None) -> WorkerId:
        """A worker is up, empty; returns its number, which no other has had. See `Router.join`."""
        worker = next(self._workers)
        self.router.join(worker, capacity, max_live=max_live)
        return worker

    def lost(self, worker: WorkerId, now_s: float) -> None:
        """A worker died, hangs or is let go; what it ran waits again. Raises KeyError if it is not up."""
        self.router.load_of[worker]
        produced = {
            sent.request.id: self.live[sent.request.id].produced_tok
            for sent in self.router.dispatched.values()
            if sent.worker == worker
        }
        for info in self.router.leave(worker, produced):
            self._again(self.live[info.id], now_s)

    def drain(self, worker: WorkerId) -> None:
        """The worker gets no more requests; it may be let go once it is among `drained`."""
        self.router.drain(worker)

    @property
    def drained(self) -> list[WorkerId]:
        """Workers that drain and run nothing any more."""
        return [worker for worker in self.router.draining if not self.router.load_of[worker]]

    # ---- clients ----

    def submit(self, request: Request, now_s: float) -> None:
        """Takes a request; each of its outputs is dispatched alone.

        Raises:
          ValueError: it has no id, one of its names is live already, it is a resumed one, or it names a
            token that no vocabulary has.
        """
        taken = [name for name in request.names if name in self.live]
        if taken or not request.id or request.resume_ids:
            raise ValueError(f"request {request.id!r} needs an id that is not live, and nothing to resume")
        try:
            prompt = token_bytes(request.prompt_ids)
        except OverflowError as why:
            raise ValueError(f"request {request.id!r} names a token that no vocabulary has: {why}") from None
        for index, name in enumerate(request.names):
            seq = next(self._seq) - request.priority * PRIORITY_STEP
            live = LiveOutput(request, index, name, seq, now_s, prompt)
            self.live[name] = live
            self._names.setdefault(request.id, {})[name] = None
            self._note("arrive", live, now_s)
            if not self.queue.arrive(live.info(), now_s):
                self._tell_end(live, "refused", now_s)
            elif live.deadline_s is not None:
                heapq.heappush(self._deadlines, (live.deadline_s, name))

    def cancel(self, id: RequestId, now_s: float) -> None:
        """Ends what is live of a request; its reader is told so. One that is not live is ignored."""
        for name in list(self._names.get(id, ())):
            self._end(self.live[name], "cancel", now_s)

    def expire(self, now_s: float) -> None:
        """Ends what is past its deadline, wherever it is."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            limit_s, name = heapq.heappop(self._deadlines)
            live = self.live.get(name)
            if live is not None and live.deadline_s == limit_s:
                self._end(live, "deadline", now_s)

    def dispatch(self, now_s: float) -> list[Send]:
        """Sends what waits to workers that have room."""
        sends = []
        while self.router.has_room and (info := self.queue.pick(now_s)) is not None:
            live = self.live[info.id]
            worker = self.router.dispatch(live.info(), live.blocks(self._block_tok), now_s)
            self.queue.admit(info, extend_tok=info.prompt_tok + len(live.ids), hit_tok=0)
            self.counts.dispatched += 1
            self.counts.again += live.tries > 0
            sends.append(live.sent(worker, next(self._attempts), now_s))
        return sends

    # ---- workers' reports ----

    def admitted(
        self, name: RequestId, attempt: AttemptId, *, extend_tok: int, hit_tok: int, now_s: float
    ) -> None:
        """An attempt began to run: it computes `extend_tok` and found `hit_tok`. Later ones do not count."""
        live = self._current(name, attempt)
        if live is None or live.admitted:
            self.counts.dropped += 1
            return
        live.admitted = True
        self._note("admit", live, now_s, extend=extend_tok, hit=hit_tok)
        self.router.admitted(name, extend_tok=extend_tok, hit_tok=hit_tok)
        if live.admit_s < 0:
            live.admit_s, live.hit_tok = now_s, hit_tok

    def reported(self, name: RequestId, attempt: AttemptId, number: int, delta: Delta, now_s: float) -> None:
        """An attempt's delta; `number` counts its deltas from 0."""
        live = self._current(name, attempt)
        if live is None or number < live.next_report:
            self.counts.dropped += 1
            return
        if number > live.next_report:
            self.counts.gaps += 1
            self.broken(name, attempt, now_s)
            return
        live.next_report += 1
        new = live.take(delta, now_s)
        if new.ids:
            self.queue.decoded({name: len(new.ids)})
        if delta.output is None:
            self.deltas.append(new)
        elif delta.output.finish_reason in BROKEN:
            self.deltas.append(new)
            self.broken(name, attempt, now_s)
        else:
            self._end(live, delta.output.finish_reason, now_s, new, delta.output)

    def broken(self, name: RequestId, attempt: AttemptId, now_s: float) -> None:
        """An attempt's stream ended too early, while its worker is still up."""
        live = self._current(name, attempt)
        if live is None or live.worker is None:
            self.counts.dropped += 1
            return
        self.stops.append(Stop(live.worker, attempt, name))
        self.router.withdrawn(name, live.produced_tok)
        self._again(live, now_s)

    def _current(self, name: RequestId, attempt: AttemptId) -> LiveOutput | None:
        live = self.live.get(name)
        return live if live is not None and live.attempt == attempt else None

    # ---- ends ----

    def _again(self, live: LiveOutput, now_s: float) -> None:
        """An attempt is over that did not end its output; the router knows that already."""
        ran = None if live.admitted or live.produced_tok else 0
        if live.admitted:
            self._note("preempt", live, now_s)
        live.withdraw()
        if len(live.ids) >= live.request.sampling.max_tokens:  # all that was lost is the news of its end
            self.queue.finish(live.name)
            self._tell_end(live, "length", now_s)
        elif live.tries >= self._max_tries:
            self.counts.failed += 1
            self.queue.cancel(live.name, prefilled_tok=ran)
            self._tell_end(live, "error", now_s)
        else:
            self.queue.preempt(live.name, prefilled_tok=ran)

    def _end(
        self,
        live: LiveOutput,
        reason: FinishReason,
        now_s: float,
        new: Delta | None = None,
        of_worker: Output | None = None,
    ) -> None:
        """Closes an output's accounts; without `of_worker` it ends from our side."""
        ran = live.admitted or live.produced_tok > 0
        if live.worker is None:
            self.queue.cancel(live.name)
        else:
            if of_worker is None and live.attempt is not None:
                self.stops.append(Stop(live.worker, live.attempt, live.name))
            if ran:
                self.router.ended(live.name, live.produced_tok)
            else:  # what was never computed costs nothing
                self.router.withdrawn(live.name, 0)
            if of_worker is not None and ran:
                self.queue.finish(live.name)
            else:
                self.queue.cancel(live.name, prefilled_tok=None if ran else 0)
        self._tell_end(live, reason, now_s, new, of_worker)

    def _tell_end(
        self,
        live: LiveOutput,
        reason: FinishReason,
        now_s: float,
        new: Delta | None = None,
        of_worker: Output | None = None,
    ) -> None:
        del self.live[live.name]
        names = self._names[live.request.id]
        del names[live.name]
        if not names:
            del self._names[live.request.id]
        if new is None:
            new = Delta(live.request.id, live.request.client, [], index=live.index)
        new.output = live.output(reason, now_s, of_worker)
        kind = "finish" if reason in ("stop", "length") else "cancel"
        self._note(kind, live, now_s, reason=reason, output_tok=len(live.ids))
        self.deltas.append(new)

    def _note(self, event: str, live: LiveOutput, now_s: float, **more: Any) -> None:
        self.log({"t": now_s, "event": event, "id": live.name, "client": live.request.client, **more})
