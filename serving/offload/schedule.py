"""Schedules of one decode pass as lists of tasks on lanes; simulator and runtime execute the same list.

A pass runs L layers over m micro-batches. A lane executes its tasks in list order, so list order is part of a
schedule; `needs` names tasks of other lanes only. Weights not resident arrive in pages, one for each
micro-batch, into one of two layer buffers. Layers and micro-batches count from 0. The first layer that
streams weights has them when a pass begins; with `wrap` a pass fetches them again for the next one, under the
name of a layer behind the last.

    s1        CGOPipe: pages between hidden states, attention on the host two micro-batches ahead
    s2        the same overlap, but the next layer's weights in one piece, after (or before) the layer's
              hidden states
    s3        host attention, one micro-batch after the other, the next layer's weights meanwhile (FlexGen(c))
    s4        attention on the device, K/V of the next micro-batch fetched during the present one (FlexGen)
    flexgen   s4 with FlexGen's barrier after every micro-batch
    zero      one micro-batch, K/V on the device, weights streamed by layer (DeepSpeed ZeRO-Inference)
    serial    nothing overlaps

Source: MoE-Lightning (arXiv 2411.11217), section 4.1, algorithm 1 and figure 6; its index slips are
corrected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LANES = ("device", "host", "to_device", "to_host", "pin")


class LaneTask(NamedTuple):
    """One piece of work.

    Attributes:
      kind: pre, offload, attention, load, post, weights, pin, kv, block (a whole layer of a micro-batch) or
        store.
      layer, part: the layer, and the micro-batch or page.
      lane: one of `LANES`.
      seconds: its modelled duration.
      needs: indices, in the schedule's list, of tasks that end before it starts.
    """

    kind: str
    layer: int
    part: int
    lane: str
    seconds: float
    needs: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskSeconds:
    """Durations per layer and micro-batch; `weights` and `pin` per layer.

    Attributes:
      pre, post: projections before attention; output projection and experts after it, on the device.
      offload, load: q, k, v to the host; the attention's output to the device.
      host_attention, device_attention: attention on either side.
      weights, pin: a layer's streamed experts over the link; their copy into pinned staging (0 = no such
        stage).
      kv: K/V of a micro-batch to the device, where the device attends.
      store: its new K/V back to the host.
    """

    pre: float
    post: float
    offload: float
    load: float
    host_attention: float
    device_attention: float
    weights: float
    kv: float
    pin: float = 0.0
    store: float = 0.0


@dataclass
class _Emitter:
    """Appends tasks and remembers where each is."""

    tasks: list[LaneTask] = field(default_factory=list)
    place: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        layer: int,
        part: int,
        lane: str,
        seconds: float,
        *needs: tuple[str, int, int] | None,
    ) -> None:
        """`needs` names tasks; None, tasks of a past pass and of the same lane need no wait."""
        found = {self.place[name] for name in needs if name is not None and name in self.place}
        found = {need for need in found if self.tasks[need].lane != lane}
        self.place[kind, layer, part] = len(self.tasks)
        self.tasks.append(LaneTask(kind, layer, part, lane, seconds, tuple(sorted(found))))


def emit(
    schedule: str,
    *,
    layers: int,
    micro_batches: int,
    seconds: TaskSeconds,
    variant: str = "",
    ahead: int = 2,
    streams: Sequence[int] | None = None,
    wrap: bool = False,
) -> list[LaneTask]:
    """The tasks of one pass.

    Args:
      schedule: one of `SCHEDULES`.
      variant: "first" issues the whole weights of s2 and s3 before the layer's first task, not after its
        last.
      ahead: micro-batches that s1 and s2 run ahead; fewer than 2 stalls the device, which a test shows.
      streams: the layers that stream weights, in order; None = all. The others (dense ones) have theirs.
      wrap: fetch the first layer's weights for the next pass at the end, as those of layer `layers`.

    Raises:
      ValueError: an unknown schedule or variant, a size below 1, or layers that do not exist.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if variant not in ("", "first"):
        raise ValueError(f"unknown variant {variant!r} of schedule {schedule}; known: 'first'")
    for name, value in (("layers", layers), ("micro_batches", micro_batches), ("ahead", ahead)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    named = list(range(layers)) if streams is None else list(streams)
    if named != sorted(set(named)) or not set(named) <= set(range(layers)):
        raise ValueError(f"streams names layers {named} of {layers}; they must be there, once, in order")
    to = _Emitter()
    run = _Pass(layers, micro_batches, seconds, variant == "first", ahead, *_fetches(named, layers, wrap))
    SCHEDULES[schedule](to, run)
    return to.tasks


def _fetches(streams: Sequence[int], layers: int, wrap: bool) -> tuple[dict[int, int], dict[int, int]]:
    """For each layer that streams, the one whose weights come meanwhile, and whose buffer they take."""
    behind = [*streams[1:], *([layers] if wrap and streams else [])]
    following = dict(zip(streams, behind))
    freed = dict(zip(behind[1:], streams))
    return following, freed


class _Pass(NamedTuple):
    """`following`: layer -> the layer whose weights are fetched meanwhile. `freed`: that layer -> the one
    that has used its buffer before."""

    layers: int
    m: int
    seconds: TaskSeconds
    first: bool
    ahead: int
    following: dict[int, int]
    freed: dict[int, int]


def _pre_and_attend(to: _Emitter, run: _Pass, i: int, j: int) -> None:
    """Queries of a micro-batch: projected, sent to the host, attended there."""
    t = run.seconds
    to.add("pre", i, j, "device", t.pre, ("post", i - 1, j))
    to.add("offload", i, j, "to_host", t.offload, ("pre", i, j))
    to.add("attention", i, j, "host", t.host_attention, ("offload", i, j))


def _post(to: _Emitter, run: _Pass, i: int, j: int, last_page: int) -> None:
    """The rest of a layer. Its first micro-batch waits for the last page; the others follow it."""
    weights = ("weights", i, last_page) if j == 0 else None
    to.add("post", i, j, "device", run.seconds.post, ("load", i, j), weights)


def _page(to: _Emitter, run: _Pass, i: int, p: int) -> None:
    """Page p of the weights that come during layer i: its staging slot is free once layer i's own page left
    it, the buffer after the layer before."""
    if (target := run.following.get(i)) is None:
        return
    t, free = run.seconds, ("post", run.freed.get(target, -1), run.m - 1) if p == 0 else None
    staged = None
    if t.pin:
        to.add("pin", target, p, "pin", t.pin / run.m, ("weights", i, p))
        staged = ("pin", target, p)
    to.add("weights", target, p, "to_device", t.weights / run.m, staged, free)


def _whole(to: _Emitter, run: _Pass, i: int, done: str, *needs: tuple[str, int, int]) -> None:
    """All weights that come during layer i in one piece, once task `done` has left the buffer."""
    if (target := run.following.get(i)) is not None:
        last = 0 if done == "zero" else run.m - 1
        free = ("block" if done == "zero" else done, run.freed.get(target, -1), last)
        to.add("weights", target, 0, "to_device", run.seconds.weights, free, *needs)


def _s1(to: _Emitter, run: _Pass) -> None:
    _pipelined(to, run, paged=True)


def _s2(to: _Emitter, run: _Pass) -> None:
    _pipelined(to, run, paged=False)


def _pipelined(to: _Emitter, run: _Pass, *, paged: bool) -> None:
    ahead = min(run.ahead, run.m)
    for j in range(ahead):
        _pre_and_attend(to, run, 0, j)
    for i in range(run.layers):
        for j in range(run.m):
            to.add("load", i, j, "to_device", run.seconds.load, ("attention", i, j))
            if paged:
                _page(to, run, i, j)
            elif j == (0 if run.first else run.m - 1):
                _whole(to, run, i, "post")
            _post(to, run, i, j, run.m - 1 if paged else 0)
            layer, part = divmod(i * run.m + j + ahead, run.m)
            if layer < run.layers:
                _pre_and_attend(to, run, layer, part)


def _s3(to: _Emitter, run: _Pass) -> None:
    for i in range(run.layers):
        if run.first:
            _whole(to, run, i, "post")
        for j in range(run.m):
            _pre_and_attend(to, run, i, j)
            to.add("load", i, j, "to_device", run.seconds.load, ("attention", i, j))
            _post(to, run, i, j, 0)
        if not run.first:
            _whole(to, run, i, "post")


def _block_seconds(run: _Pass) -> float:
    return run.seconds.pre + run.seconds.device_attention + run.seconds.post


def _kv(to: _Emitter, run: _Pass, q: int, *needs: tuple[str, int, int]) -> None:
    """K/V of step q = i m + j, into one of two buffers: step q-2 has left it."""
    if q < run.layers * run.m:
        before = () if q < 2 else (("block", *divmod(q - 2, run.m)),)
        to.add("kv", *divmod(q, run.m), "to_device", run.seconds.kv, *before, *needs)


def _s4(to: _Emitter, run: _Pass) -> None:
    _kv(to, run, 0)
    for i in range(run.layers):
        for j in range(run.m):
            if j == run.m - 1:
                _whole(to, run, i, "block")
            _kv(to, run, i * run.m + j + 1)
            weights = ("weights", i, 0) if j == 0 else None
            before = None if run.m == 1 else ("block", i - 1, j)
            to.add("block", i, j, "device", _block_seconds(run), ("kv", i, j), weights, before)
            to.add("store", i, j, "to_host", run.seconds.store, ("block", i, j))


def _flexgen(to: _Emitter, run: _Pass) -> None:
    """A step, one micro-batch of one layer, ends when its transfers and its computation have ended."""
    _kv(to, run, 0)
    for q in range(run.layers * run.m):
        i, j = divmod(q, run.m)
        barrier = [("kv", i, j), *_named_step(q - 1, run)]
        if j == 0:
            _whole(to, run, i, "block", *barrier)
        _kv(to, run, q + 1, *barrier)
        weights = ("weights", i, 0)
        to.add("block", i, j, "device", _block_seconds(run), weights, *barrier)
        if q:
            to.add("store", *divmod(q - 1, run.m), "to_host", run.seconds.store, *barrier)
    last = divmod(run.layers * run.m - 1, run.m)
    to.add("store", *last, "to_host", run.seconds.store, ("block", *last))


def _named_step(q: int, run: _Pass) -> list[tuple[str, int, int]]:
    """The tasks of FlexGen's step q besides its K/V fetch, which step q+1 names itself."""
    if q < 0:
        return []
    i, j = divmod(q, run.m)
    stored = [("store", *divmod(q - 1, run.m))] if q else []
    return [("block", i, j), ("weights", run.following.get(i, -1), 0), *stored]


def _zero(to: _Emitter, run: _Pass) -> None:
    for i in range(run.layers):
        _whole(to, run, i, "zero")
        to.add("block", i, 0, "device", run.m * _block_seconds(run), ("weights", i, 0))


def _serial(to: _Emitter, run: _Pass) -> None:
    """Host attention without any overlap: each task waits for the one before it."""
    t = run.seconds
    steps: list[tuple[str, int, int, str, float]] = []
    fetched = set(run.following.values())
    for i in range(run.layers):
        if i in fetched:
            steps.append(("weights", i, 0, "to_device", t.weights))
        for j in range(run.m):
            steps += [
                ("pre", i, j, "device", t.pre),
                ("offload", i, j, "to_host", t.offload),
                ("attention", i, j, "host", t.host_attention),
                ("load", i, j, "to_device", t.load),
                ("post", i, j, "device", t.post),
            ]
    if run.layers in fetched:
        steps.append(("weights", run.layers, 0, "to_device", t.weights))
    for before, step in zip([None, *steps], steps):
        to.add(*step, None if before is None else before[:3])


SCHEDULES: dict[str, Callable[[_Emitter, _Pass], None]] = {
    "s1": _s1,
    "s2": _s2,
    "s3": _s3,
    "s4": _s4,
    "flexgen": _flexgen,
    "zero": _zero,
    "serial": _serial,
}
