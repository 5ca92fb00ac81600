"""Synthetic town days: traces with the published statistics of Generative Agents runs, drawn from a seed.

Published: 25 agents on 140 x 100 tiles, 360 steps per hour, 56.7k calls per day, about 5,000 from 12 to 13 h
and 800 from 6 to 7 h, none from 1 to 4 h, 642.6 prompt and 21.9 output tokens per call, and 1.85 agents
within perception of an agent, itself included. Everything between those points is ours: results on
these traces compare schedulers on such work and do not reproduce the paper's measurements.

More than 25 agents live in towns side by side. Each town has its own seed and lies too far from the next for
resting agents to see each other.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from serving.metropolis.schedule.rules import Reach
from serving.metropolis.worlds.trace import AgentTrace, RecordedCall

WIDTH, HEIGHT, ROOM, PER_TOWN, HOUR = 140, 100, 11, 25, 360
BOUNDARY = 30  # steps between the times at which actions may end: five minutes
VERSION = 1

# Calls of 25 agents by hour. Published: hours 1-3, 6, 12 and the sum; the rest is interpolated.
CALLS_PER_HOUR = (
    *(1000, 0, 0, 0, 50, 300, 800, 2500, 3500, 3800, 4000, 4400),
    *(5000, 4600, 4200, 4000, 3900, 4000, 3800, 3300, 2600, 1700, 900, 300),
)
# Mean prompt and output tokens by kind of call, scaled so that the mix has the published means.
SIZES = {"plan": (535, 11.1), "poignancy": (490, 3.8), "utterance": (800, 44.0), "decision": (705, 24.0)}
_PLAN_CALLS, _LONG_CALLS = 8, 0.15
_CHAT_TURNS = (8, 33)

type Room = tuple[int, int]  # upper left tile
type Stay = tuple[int, Room, bool]  # first step, room, whether the agent sleeps


@dataclass(unsafe_hash=True, kw_only=True)
class SyntheticTraceConfig:
    """What to generate.

    Attributes:
      agents: number of agents, 25 per town; the last town holds the remainder.
      hour: 0 to 23 for one hour, or -1 for the whole day.
      perceive, move: reach of every agent, in tiles (Chebyshev).
    """

    agents: int = 25
    hour: int = 12
    seed: int = 0
    perceive: int = 4
    move: int = 1

    def check(self) -> None:
        if self.agents < 1:
            raise ValueError(f"agents is {self.agents}; it must be at least 1")
        if not -1 <= self.hour <= 23:
            raise ValueError(f"hour is {self.hour}; it must be 0 to 23, or -1 for the whole day")


def generate_trace(config: SyntheticTraceConfig) -> AgentTrace:
    """Draws a trace; equal configs give equal traces."""
    config.check()
    start, steps = (0, 24 * HOUR) if config.hour < 0 else (config.hour * HOUR, HOUR)
    trace = AgentTrace(steps, Reach(config.perceive, config.move), [], [], [], [])
    trace.about = {"generator": VERSION, "seed": config.seed, "agents": config.agents, "hour": config.hour}
    towns = -(-config.agents // PER_TOWN)
    for town in range(towns):
        people = min(PER_TOWN, config.agents - town * PER_TOWN)
        rng = np.random.default_rng([config.seed, town, VERSION])
        pos_TA2 = _walk(rng, people, start, steps)
        calls = _calls(rng, pos_TA2, start, config.perceive)
        trace.names += [f"t{town:03}a{i:02}" for i in range(people)]
        trace.x += [array("i", (pos_TA2[:, i, 0] + town * WIDTH).tolist()) for i in range(people)]
        trace.y += [array("i", pos_TA2[:, i, 1].tolist()) for i in range(people)]
        trace.calls += calls
    return trace


def _near_TAA(pos_TA2: np.ndarray, perceive: int) -> np.ndarray:
    """True where two different agents are within perception of each other; `pos_TA2` is [step, agent, xy]."""
    gap = np.abs(pos_TA2[:, :, None] - pos_TA2[:, None]).max(-1)
    near = gap <= perceive
    near[:, np.arange(near.shape[1]), np.arange(near.shape[1])] = False
    return near


# ---- movement ---------------------------------------------------------------------------------------------
def _walk(rng: np.random.Generator, people: int, start: int, steps: int) -> np.ndarray:
    """Positions [steps + 1, people, 2]: agents walk between rooms on a lattice, first along x, then y."""
    slots = [(8 + 18 * i, 6 + 23 * j) for i in range(7) for j in range(4)]
    order = rng.permutation(len(slots))
    homes, publics = [slots[i] for i in order[:12]], [slots[i] for i in order[12:18]]
    pos = np.zeros((steps + 1, people, 2), np.int16)
    for who in range(people):
        plan = _day(rng, homes[who % 12], publics)
        pos[:, who] = _follow(rng, plan, start, steps)
    return pos


def _day(rng: np.random.Generator, home: Room, publics: list[Room]) -> list[Stay]:
    """One agent's stays: wakes between 5:00 and 7:30, spends the day out, is home by 22:00."""
    wake = int(rng.uniform(5, 7.5) * HOUR)
    plan = [(0, home, True), (wake, home, False)]
    now = wake + int(rng.uniform(0.5, 2) * HOUR)
    while now < 20 * HOUR:
        plan.append((now, publics[rng.integers(len(publics))] if rng.random() < 0.72 else home, False))
        now += int(rng.uniform(1.0, 3.0) * HOUR)
    if rng.random() < 0.7:  # lunch
        plan.append((12 * HOUR + int(rng.integers(0, 150)), publics[rng.integers(len(publics))], False))
    plan += [(int(rng.uniform(20, 22) * HOUR), home, False), (int(rng.uniform(22, 23.5) * HOUR), home, True)]
    return sorted(plan, key=lambda entry: entry[0])


def _follow(rng: np.random.Generator, plan: list[Stay], start: int, steps: int) -> np.ndarray:
    """Positions [steps + 1, 2] of an agent that follows its plan and changes its spot now and then."""

    def spot(room: Room) -> list[int]:
        return [room[0] + int(rng.integers(ROOM)), room[1] + int(rng.integers(ROOM))]

    ahead = [entry for entry in plan if entry[0] > start]
    room, asleep = next((r, a) for s, r, a in reversed(plan) if s <= start)
    here = spot(room)
    target: list[int] | None = None
    path = np.zeros((steps + 1, 2), np.int16)
    fidget = rng.random(steps + 1) < 1 / 90
    for t in range(steps + 1):
        path[t] = here
        if ahead and ahead[0][0] <= start + t:
            _, room, asleep = ahead.pop(0)
            target = spot(room)
        elif target is None and not asleep and fidget[t]:
            target = spot(room)
        if target is not None:
            axis = 0 if here[0] != target[0] else 1
            here = here.copy()
            here[axis] += (target[axis] > here[axis]) - (target[axis] < here[axis])
            if here == target:
                target = None
    return path


# ---- calls ------------------------------------------------------------------------------------------------
def _calls(
    rng: np.random.Generator, pos_TA2: np.ndarray, start: int, perceive: int
) -> list[dict[int, tuple[RecordedCall, ...]]]:
    """Call chains by agent and step: plans at shared boundaries, perceptions and conversations."""
    near = _near_TAA(pos_TA2[:-1], perceive).sum(-1)
    steps, people = near.shape
    hour = (start + np.arange(steps)) // HOUR
    plan_p, rest = (np.array(rates)[hour][:, None] for rates in zip(*map(_rates, range(24))))
    boundary = (np.arange(steps) % BOUNDARY == 0)[:, None]
    draw = rng.random((6, steps, people))
    acts = boundary & (draw[0] < plan_p)
    notices = np.zeros_like(acts)
    notices[1:] = acts[:-1] & (near[:-1] > 0)
    notices &= draw[1] < 0.8 * np.minimum(1, rest)
    glances = draw[2] < 1 - (1 - 0.03 * np.minimum(1, rest)) ** np.minimum(near, 4)
    chats = (near > 0) & (draw[3] < 0.030 * rest)
    calls: list[dict[int, list[str]]] = [{} for _ in range(people)]
    for t, who in np.argwhere(acts | notices | glances | chats):
        kinds: list[str] = []
        if acts[t, who]:
            kinds += ["plan"] * (_PLAN_CALLS + int(draw[4, t, who] < _LONG_CALLS))
        if notices[t, who]:
            kinds += ["poignancy"] * int(rng.integers(1, 4)) + ["decision"] * int(draw[5, t, who] < 0.4)
        if glances[t, who]:
            kinds += ["poignancy"]
        if chats[t, who]:
            turns = int(rng.integers(*_CHAT_TURNS))
            kinds += ["decision" if turn % 2 == 0 else "utterance" for turn in range(turns)]
        calls[who][int(t)] = kinds
    if start == 0:
        for by_step in calls:
            by_step[0] = ["plan"] * 40 + by_step.get(0, [])
    return [{t: _sized(rng, kinds) for t, kinds in by_step.items()} for by_step in calls]


def _rates(hour: int) -> tuple[float, float]:
    """Probability of a new action at a boundary, and the level of all other calls (1.0 in the busy hour)."""
    target = CALLS_PER_HOUR[hour] if hour else 0
    boundaries = PER_TOWN * HOUR / BOUNDARY * (_PLAN_CALLS + _LONG_CALLS)
    plan_p = min(0.62, 0.33 * target / boundaries if target > 1500 else 0.5 * target / boundaries)
    rest = max(0.0, target - plan_p * boundaries) / (5000 - 0.62 * boundaries)
    return plan_p, rest


def _sized(rng: np.random.Generator, kinds: list[str]) -> tuple[RecordedCall, ...]:
    """Draws prompt and output lengths: normal and gamma around the means of each kind."""
    means = np.array([SIZES[kind] for kind in kinds])
    prompt = np.maximum(16, rng.normal(means[:, 0], 0.3 * means[:, 0])).astype(int)
    output = np.maximum(1, np.rint(rng.gamma(1.5, means[:, 1] / 1.5))).astype(int)
    return tuple(RecordedCall(kind, int(p), int(o)) for kind, p, o in zip(kinds, prompt, output))
