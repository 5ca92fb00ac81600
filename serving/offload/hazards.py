"""Finds races in a schedule: buffers read before they are filled, or refilled while they are still read.

An oracle that knows only what tasks read and write, not why the emitter added a need. Two tasks are ordered
if lanes and needs imply it; anything else may happen in any order in a runtime, whatever the modelled
durations are. Weights count as a lane of their own: a runtime may read them from a file, and the artifact's
pages were only right because hidden states happened to follow them on one copy stream.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from serving.offload.schedule import LaneTask

type Buffer = tuple[str | int, ...]


class Race(NamedTuple):
    """Two tasks, by index, of which the first must end before the second starts but need not."""

    before: int
    after: int
    buffer: Buffer


def races(tasks: Sequence[LaneTask], first: int = 0) -> list[Race]:
    """All races of a schedule, by the task that may come too early; empty if every order of execution that it
    allows is right.

    Args:
      first: the layer whose weights are there when the pass begins.
    """
    earlier = _ordered_before(tasks)
    pages, parts = _pages(tasks, first), 1 + max(task.part for task in tasks)
    buffers = {layer: rank % 2 for rank, layer in enumerate(sorted(pages))}
    accesses = [_accesses(task, pages, parts, buffers) for task in tasks]
    writer: dict[tuple[Buffer, int], int] = {}
    readers: dict[tuple[Buffer, int], list[int]] = defaultdict(list)
    for index, (reads, writes) in enumerate(accesses):
        writer |= dict.fromkeys(writes, index)
        for contents in reads:
            readers[contents].append(index)
    versions: dict[Buffer, list[int]] = defaultdict(list)
    for buffer, version in sorted({*writer, *readers}, key=lambda contents: contents[1]):
        versions[buffer].append(version)
    found: list[Race] = []
    for buffer, timeline in versions.items():
        for version, following in zip(timeline, [*timeline[1:], None]):
            wrote, read = writer.get((buffer, version)), readers[buffer, version]
            pairs = [(wrote, reader) for reader in read if wrote is not None and reader != wrote]
            after = None if following is None else writer.get((buffer, following))
            if after is not None:
                users = {*read, *([] if wrote is None else [wrote])} - {after}
                pairs += [(user, after) for user in sorted(users)]
            found += [Race(*pair, buffer) for pair in pairs if not earlier[pair[1]] >> pair[0] & 1]
    return sorted(found, key=lambda race: (race.after, race.before))


def _ordered_before(tasks: Sequence[LaneTask]) -> list[int]:
    """For each task, the tasks that end before it starts, as bits."""
    last: dict[str, int] = {}
    earlier: list[int] = []
    for index, task in enumerate(tasks):
        lane = "weights" if task.kind == "weights" else task.lane
        direct = [*task.needs, *([last[lane]] if lane in last else [])]
        bits = 0
        for before in direct:
            bits |= earlier[before] | 1 << before
        earlier.append(bits)
        last[lane] = index
    return earlier


def _pages(tasks: Sequence[LaneTask], first: int) -> dict[int, int]:
    """Number of pages in which the weights of each layer that streams arrive."""
    pages: dict[int, int] = defaultdict(int)
    for task in tasks:
        if task.kind == "weights":
            pages[task.layer] += 1
    pages[first] = max(pages.values(), default=0)
    return dict(pages)


type _Versions = list[tuple[Buffer, int]]


def _accesses(
    task: LaneTask, pages: dict[int, int], parts: int, buffers: dict[int, int]
) -> tuple[_Versions, _Versions]:
    """What a task reads and what it writes: buffers, and which layer's contents (or which step's).

    Weights and fetched K/V have two buffers each, staging one slot per page.
    """
    i, j = task.layer, task.part
    step = i * parts + j
    weights: _Versions = [(("weights", buffers.get(i, 0), page), i) for page in range(pages.get(i, 0))]
    match task.kind:
        case "pre":
            return [(("hidden", j), i - 1)], [(("query", j), i)]
        case "offload":
            return [(("query", j), i)], [(("host query", j), i)]
        case "attention":
            return [(("host query", j), i)], [(("host output", j), i)]
        case "load":
            return [(("host output", j), i)], [(("output", j), i)]
        case "post":
            return [(("output", j), i), *weights], [(("hidden", j), i)]
        case "pin":
            return [], [(("staging", j), i)]
        case "weights":
            return [(("staging", j), i)], [(("weights", buffers[i], j), i)]
        case "kv":
            return [], [(("kv", step % 2), step)]
        case "block":
            reads = [(("kv", step % 2), step), (("hidden", j), i - 1), *weights]
            return reads, [(("hidden", j), i), (("new kv", i, j), i)]
        case "store":
            return [(("new kv", i, j), i)], []
    raise ValueError(f"unknown kind of task {task.kind!r}")
