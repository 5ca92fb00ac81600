"""Recorded simulations: the position of every agent and the model calls it made, by step.

A trace fixes movement and calls, so that schedulers and servers can be compared on the same work. The file
format is JSON lines: one `about` line, then one line per move and one line per call, in any order:

    {"about": {"steps": 360, "perceive": 4, "move": 1, ...}}
    {"agent": "v0a3", "step": 0, "pos": [17, 4]}                 position after `step` steps; absent = unmoved
    {"agent": "v0a3", "step": 5, "seq": 0, "fn": "utterance", "prompt_tokens": 850, "output_tokens": 48}

Calls of one (agent, step) run one after another in the order of `seq`; unknown keys are ignored.
"""

import asyncio
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mixattn.tools import files
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Grid, Space
from serving.metropolis.world import AgentId, Body, Intent, StepContext, StepOutcome


class RecordedCall(NamedTuple):
    """One call of a trace."""

    fn: str
    prompt_tok: int
    output_tok: int


@dataclass
class AgentTrace:
    """A recorded run of `steps` steps on a grid.

    Attributes:
      reach: reach of every agent.
      names: names of the agents; their sorted order numbers them.
      x, y: per agent, its position before step s at index s; `steps + 1` entries.
      calls: per agent, its calls by step.
      about: where the trace comes from; written to the first line of its file.
    """

    steps: int
    reach: Reach
    names: list[AgentId]
    x: list[array[int]]
    y: list[array[int]]
    calls: list[dict[int, tuple[RecordedCall, ...]]]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def call_count(self) -> int:
        return sum(len(chain) for by_step in self.calls for chain in by_step.values())

    def tokens(self) -> tuple[int, int]:
        """Prompt and output tokens of all calls."""
        calls = [call for by_step in self.calls for chain in by_step.values() for call in chain]
        return sum(c.prompt_tok for c in calls), sum(c.output_tok for c in calls)


class TraceWorld:
    """Moves agents as recorded; views are empty and conflicts do not occur.

    Args:
      reach: replaces the trace's reach, for ablations.
    """

    def __init__(self, trace: AgentTrace, *, reach: Reach | None = None):
        self.trace = trace
        self.reach = reach or trace.reach
        self.space: Space = Grid()
        self._number = {name: i for i, name in enumerate(trace.names)}

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        trace = self.trace
        return {n: Body((trace.x[i][0], trace.y[i][0]), self.reach) for i, n in enumerate(trace.names)}

    def view(self, agent: AgentId, step: int) -> None:
        return None

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        trace, moves = self.trace, {}
        for name in intents:
            i = self._number[name]
            x, y = trace.x[i], trace.y[i]
            if x[step] != x[step + 1] or y[step] != y[step + 1]:
                moves[name] = (x[step + 1], y[step + 1])
        return StepOutcome(moves)

    def apply(self, step: int, outcome: StepOutcome) -> None: ...

    def snapshot(self) -> None: ...

    def restore(self, snapshot: Any) -> None: ...


class TraceAgent:
    """Makes the recorded calls of a step: one after another if `chained`, else all at once."""

    def __init__(
        self, trace: AgentTrace, number: int, *, chained: bool = True, promises: list[int] | None = None
    ):
        self._calls, self._chained = trace.calls[number], chained
        self._promises = promises

    async def proceed(self, view: None, ctx: StepContext) -> Intent:
        chain = self._calls.get(ctx.step)
        if chain is not None:
            if self._chained:
                for call in chain:
                    await ctx.llm(range(call.prompt_tok), max_tokens=call.output_tok)
            else:
                await asyncio.gather(*(ctx.llm(range(c.prompt_tok), max_tokens=c.output_tok) for c in chain))
        return _NO_INTENT if self._promises is None else Intent(still_until=self._promises[ctx.step])


_NO_INTENT = Intent()


def trace_agents(
    trace: AgentTrace, *, chained: bool = True, still: bool = False
) -> dict[AgentId, TraceAgent]:
    """The agents of a trace, by name.

    With `still`, each agent promises to stay as long as the trace shows it staying. A live agent cannot know
    that, so the result is an upper bound on the gain from promised immobility.
    """
    return {
        name: TraceAgent(trace, i, chained=chained, promises=stays_until(trace, i) if still else None)
        for i, name in enumerate(trace.names)
    }


def stays_until(trace: AgentTrace, number: int) -> list[int]:
    """For each step s, the first step after s in which the agent moves, or the number of steps."""
    x, y, until = trace.x[number], trace.y[number], [0] * trace.steps
    following = trace.steps
    for step in range(trace.steps - 1, -1, -1):
        until[step] = following
        if x[step] != x[step + 1] or y[step] != y[step + 1]:
            following = step
    return until


# ---- files ------------------------------------------------------------------------------------------------
def save_trace(trace: AgentTrace, path: str | os.PathLike[str]) -> None:
    """Writes the JSON-lines format above; the file is whole or absent."""
    with files.whole(Path(path)) as unfinished, unfinished.open("w") as out:
        reach = {"perceive": trace.reach.perceive, "move": trace.reach.move, "write": trace.reach.write}
        out.write(json.dumps({"about": {**trace.about, "steps": trace.steps, **reach}}) + "\n")
        for line in _lines(trace):
            out.write(json.dumps(line, separators=(",", ":")) + "\n")


def _lines(trace: AgentTrace) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(trace.names):
        x, y = trace.x[i], trace.y[i]
        for step in range(trace.steps + 1):
            if step == 0 or x[step] != x[step - 1] or y[step] != y[step - 1]:
                yield {"agent": name, "step": step, "pos": [x[step], y[step]]}
        for step, chain in sorted(trace.calls[i].items()):
            for seq, call in enumerate(chain):
                sizes = {"prompt_tokens": call.prompt_tok, "output_tokens": call.output_tok}
                yield {"agent": name, "step": step, "seq": seq, "fn": call.fn, **sizes}


def load_trace(path: str | os.PathLike[str]) -> AgentTrace:
    """Reads the JSON-lines format above.

    Raises:
      ValueError: a line is neither a move nor a call, or an agent has no position at step 0.
    """
    about: dict[str, Any] = {}
    moves: list[tuple[AgentId, int, list[int]]] = []
    calls: list[tuple[AgentId, int, int, RecordedCall]] = []
    with open(path) as lines:
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                if "about" in line:
                    about = line["about"]
                elif "pos" in line:
                    moves.append((line["agent"], line["step"], line["pos"]))
                else:
                    call = RecordedCall(line["fn"], line["prompt_tokens"], line["output_tokens"])
                    calls.append((line["agent"], line["step"], line["seq"], call))
            except (KeyError, TypeError, ValueError) as why:
                raise ValueError(f"{path}, line {number} is neither a move nor a call: {why!r}") from why
    if not {"steps", "perceive", "move"} <= about.keys():
        raise ValueError(f"{path} has no `about` line with steps, perceive and move")
    write = about.get("write", about["move"])
    return build_trace(
        about["steps"], Reach(about["perceive"], about["move"], write), moves, calls, about=about
    )


def build_trace(
    steps: int,
    reach: Reach,
    moves: Iterable[tuple[AgentId, int, Any]],
    calls: Iterable[tuple[AgentId, int, int, RecordedCall]],
    *,
    about: dict[str, Any] | None = None,
) -> AgentTrace:
    """Builds a trace from moves (agent, step, position) and calls (agent, step, seq, call), in any order.

    Raises:
      ValueError: an agent has no position at step 0, or a call has no agent or no step of the run.
    """
    places: dict[AgentId, dict[int, Any]] = {}
    for name, step, pos in moves:
        places.setdefault(name, {})[step] = pos
    names = sorted(places)
    number = {name: i for i, name in enumerate(names)}
    chains: list[dict[int, list[tuple[int, RecordedCall]]]] = [{} for _ in names]
    for name, step, seq, call in calls:
        if name not in number or not 0 <= step < steps:
            raise ValueError(f"a call of {name!r} at step {step} has no agent or lies outside 0..{steps - 1}")
        chains[number[name]].setdefault(step, []).append((seq, call))
    xs, ys = [], []
    for name in names:
        if 0 not in places[name]:
            raise ValueError(f"agent {name!r} has no position at step 0")
        x, y = array("i"), array("i")
        here = places[name][0]
        for step in range(steps + 1):
            here = places[name].get(step, here)
            x.append(here[0])
            y.append(here[1])
        xs.append(x)
        ys.append(y)
    ordered = [{s: tuple(a for _, a in sorted(c, key=lambda p: p[0])) for s, c in m.items()} for m in chains]
    return AgentTrace(steps, reach, names, xs, ys, ordered, about or {})


# ---- the instrumented public fork -------------------------------------------------------------------------
def import_events(
    llm_data: Mapping[str, Any], location_data: Mapping[str, Any], *, reach: Reach
) -> AgentTrace:
    """Imports the export of the instrumented Generative Agents fork by the paper's first author.

    Args:
      llm_data: `"persona:step:function:start"` -> record with `persona_name, step, function_name, input,
        output, start_time, end_time`, all strings.
      location_data: `"location:persona:step"` -> record with `location`, the tile moved to, as "[x, y]".

    That log has one event per prompt function, which includes its retries; some inputs are template arguments
    rather than the prompt. Token counts are therefore estimates (four characters per token, at least one).
    Events without duration (failed or stubbed calls) are dropped.
    """
    moves: list[tuple[AgentId, int, Any]] = []
    for key, record in location_data.items():
        _, persona, step = key.split(":", 2)
        place = record["location"] if isinstance(record, Mapping) else record
        pos = json.loads(place) if isinstance(place, str) else place
        moves.append((persona, int(step) + 1, pos))
    first = {name: min((s, p) for n, s, p in moves if n == name)[1] for name in {n for n, _, _ in moves}}
    moves += [(name, 0, pos) for name, pos in first.items()]
    calls: list[tuple[AgentId, int, int, RecordedCall]] = []
    last = max((step for _, step, _ in moves), default=0)
    by_step: dict[tuple[str, int], list[tuple[float, RecordedCall]]] = {}
    for record in llm_data.values():
        start, end = float(record["start_time"]), float(record["end_time"])
        if end - start <= 1e-3:
            continue
        sizes = [max(1, len(str(record[side])) // 4) for side in ("input", "output")]
        call = RecordedCall(record["function_name"], *sizes)
        by_step.setdefault((record["persona_name"], int(record["step"])), []).append((start, call))
        last = max(last, int(record["step"]) + 1)
    for (name, at), events in by_step.items():
        for seq, (_, call) in enumerate(sorted(events)):
            calls.append((name, at, seq, call))
    return build_trace(
        last, reach, moves, calls, about={"source": "instrumented fork, token counts estimated"}
    )
