"""Mode `cache`: route first, read only the experts that are asked for and not there.

For decoding few rows. A layer's experts that are there are computed while a thread reads the others. Prompts
ask for nearly every expert, so a pass with a chunk of a prompt streams: it borrows slots for two layer
buffers and takes what else is in the cache as it is.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.offload.lanes import MeasuredPass
from serving.offload.runtime.buffers import ExpertArrays, ExpertSlots, LayerBuffers
from serving.offload.runtime.cache import At, ExpertCache
from serving.offload.runtime.pieces import MicroBatch, Pieces, RoutedRows
from serving.offload.runtime.streaming import StreamRunner
from serving.offload.schedule import LaneTask
from serving.offload.simulate import LaneSpan


@dataclass
class _Times:
    """Spans of a pass by lane."""

    begin_s: float = field(default_factory=time.perf_counter)
    spans: list[LaneSpan] = field(default_factory=list)

    def add(self, kind: str, layer: int, part: int, lane: str, start_s: float) -> None:
        end_s = time.perf_counter()
        task = LaneTask(kind, layer, part, lane, 0.0)
        self.spans.append(LaneSpan(task, start_s - self.begin_s, end_s - self.begin_s))


class CacheRunner:
    """Runs passes over a cache of experts.

    Args:
      n_layers, streams: layers, and which of them have experts.
      n_experts: of a layer.
      schedule: of the passes that stream.
      prefetch: while a layer's experts are computed, read those that the next one's router would choose now.
        Needs a stack with `guesses`.
    """

    def __init__(
        self,
        slots: ExpertSlots,
        cache: ExpertCache,
        *,
        n_layers: int,
        streams: Sequence[int],
        n_experts: int,
        schedule: str = "s1",
        prefetch: bool = False,
    ):
        if cache.slots > len(slots):
            raise ValueError(f"a cache of {cache.slots} experts over {len(slots)} slots")
        self.slots, self.cache, self._n_layers, self._streams = slots, cache, n_layers, tuple(streams)
        self._n_experts, self._schedule = n_experts, schedule
        self._arrays: dict[At, ExpertArrays] = {}
        self.measured: MeasuredPass | None = None
        self.routing: list[list[tuple[int, ...]]] = []  # of each cached pass: by layer, experts asked for
        self.passes = {"cache": 0, "stream": 0}
        self._following = dict(zip(self._streams, self._streams[1:])) if prefetch else {}
        self._reader: _Reader | None = None

    def run(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> None:
        """One pass; `measured` holds its times afterwards.

        Raises:
          OSError, ValueError: reading failed.
        """
        self._settle()
        prompts = any(part.decoding is None for part in parts)
        if prompts and 2 * self._n_experts <= self.cache.slots:
            self._stream(pieces, parts)
            self.passes["stream"] += 1
        else:
            self._run_cached(pieces, parts)
            self.passes["cache"] += 1

    # ---- prompts ----

    def _stream(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> None:
        missing = sum((i, e) not in self.cache for i in self._streams for e in range(self._n_experts))
        lent = self.cache.lend(2 * self._n_experts if missing else 0)
        try:
            stays = {at: self._arrays[at] for at in self.cache.held()}
            streamed = {i: [e for e in range(self._n_experts) if (i, e) not in stays] for i in self._streams}
            buffers = LayerBuffers(streamed, self.slots, self._n_layers, lent)
            runner = StreamRunner(
                buffers, stays, n_layers=self._n_layers, schedule=self._schedule, wrap=False
            )
            runner.run(pieces, parts)
            self.measured = runner.measured
        finally:
            self.cache.give_back(lent)
            self._arrays = {at: self._arrays[at] for at in self.cache.held()}

    # ---- decoding ----

    def _run_cached(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> None:
        times, routing = _Times(), []
        try:
            for i in range(self._n_layers):
                rows = self._before_experts(i, pieces, parts, times)
                if rows:
                    routing.append(self._experts(i, pieces, parts, rows, times))
        finally:
            self._settle()
        self.routing.append(routing)
        self.measured = MeasuredPass(tuple(sorted(times.spans, key=lambda span: span.start_s)))

    def _before_experts(
        self, i: int, pieces: Pieces, parts: Sequence[MicroBatch], times: _Times
    ) -> list[RoutedRows]:
        """A layer up to its experts; the rows of each micro-batch, none if the layer is dense."""
        rows: list[RoutedRows] = []
        for j, part in enumerate(parts):
            start_s = time.perf_counter()
            qkv = pieces.project(i, part)
            times.add("pre", i, j, "device", start_s)
            start_s = time.perf_counter()
            out = pieces.to_device(pieces.attend(i, part, pieces.to_host(qkv)))
            times.add("attention", i, j, "host", start_s)
            start_s = time.perf_counter()
            if i in self._streams:
                rows.append(pieces.route(i, part, out))
            else:
                pieces.dense(i, part, out)
            times.add("post", i, j, "device", start_s)
        return rows

    def _experts(
        self,
        i: int,
        pieces: Pieces,
        parts: Sequence[MicroBatch],
        rows: Sequence[RoutedRows],
        times: _Times,
    ) -> tuple[int, ...]:
        """A layer's experts: those that are there first, the others as they arrive."""
        asked = sorted({expert for mine in rows for expert in mine.used()})
        self._settle()
        hits, misses = self.cache.begin((i, expert) for expert in asked)
        guesses = self._guesses(i, pieces, parts)
        self._reader = reader = _Reader(self.slots, self.cache, self._arrays, misses, guesses, times)
        try:
            reader.start()
            for at in hits:
                self._compute(at, pieces, parts, rows, times)
            for _ in misses:
                self._compute(reader.next(), pieces, parts, rows, times)
        except BaseException:
            reader.stop()
            raise
        finally:
            for at in [*hits, *misses]:
                self.cache.done(at)
        start_s = time.perf_counter()
        for part, mine in zip(parts, rows):
            pieces.combine(i, part, mine)
        times.add("post", i, 0, "device", start_s)
        return tuple(asked)

    def _guesses(self, i: int, pieces: Pieces, parts: Sequence[MicroBatch]) -> list[At]:
        """What the next layer with experts may ask for, if all rows decode."""
        following = self._following.get(i)
        if following is None or any(part.decoding is None for part in parts):
            return []
        found = {expert for part in parts for expert in pieces.guess(following, part)}
        here = [(following, expert) for expert in sorted(found)]
        return sorted(here, key=lambda at: at not in self.cache)  # what is there is kept before others come

    def _settle(self) -> None:
        """Waits for a guess that is being read; the others are not begun."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.stop()

    def _compute(
        self,
        at: At,
        pieces: Pieces,
        parts: Sequence[MicroBatch],
        rows: Sequence[RoutedRows],
        times: _Times,
    ) -> None:
        start_s, (layer, expert) = time.perf_counter(), at
        for part, mine in zip(parts, rows):
            if mine.size_E[expert]:
                pieces.expert(part, mine, expert, self._arrays[at])
        for mine in rows:
            mine.y_MD.block_until_ready()  # its slot may be filled again from here on
        times.add("post", layer, 0, "device", start_s)
        self.cache.done(at)


class _Reader:
    """A thread that reads what a layer misses, and then guesses, until it is stopped."""

    def __init__(
        self,
        slots: ExpertSlots,
        cache: ExpertCache,
        arrays: dict[At, ExpertArrays],
        misses: Sequence[At],
        guesses: Sequence[At],
        times: _Times,
    ):
        self._slots, self._cache, self._arrays, self._times = slots, cache, arrays, times
        self._misses, self._guesses = misses, guesses
        self._arrived: queue.Queue[At | BaseException] = queue.Queue()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lane weights")

    def start(self) -> None:
        if self._misses or self._guesses:
            self._thread.start()

    def next(self) -> At:
        """The next of the misses that has arrived.

        Raises:
          OSError, ValueError: reading failed.
        """
        got = self._arrived.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def stop(self) -> None:
        """Ends the thread; what it reads is read to the end."""
        self._enough.set()
        self._cache.stop()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        for at in self._misses:
            try:
                if (slot := self._cache.take(at)) is None:
                    return
                self._read(at, slot)
            except BaseException as why:  # raised again in the caller
                self._cache.drop(at)
                self._arrived.put(why)
                return
            self._arrived.put(at)
        for at in self._guesses:
            if self._enough.is_set():
                return
            if (slot := self._cache.guess(at)) is None:
                continue
            try:
                self._read(at, slot)
            except (OSError, ValueError):  # if it is asked for, reading it fails again, and is reported
                self._cache.drop(at)
                return

    def _read(self, at: At, slot: int) -> None:
        start_s = time.perf_counter()
        self._arrays[at] = self._slots.read(slot, *at)
        self._times.add("weights", at[0], at[1], "to_device", start_s)
