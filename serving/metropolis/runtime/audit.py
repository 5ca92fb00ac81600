"""Audits commit logs for equality with lock-step execution. Shares no code with the scheduler or the engine.

The audit replays all positions from the log alone and checks for every commit:

* each agent runs steps 0, 1, 2, ... in order;
* its members stay within their reach and keep their promises;
* its views were taken after every perceptible change of earlier steps and before every one of later steps;
* afterwards no agent can perceive another one that is at a different step.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from serving.metropolis.runtime.store import Commit
from serving.metropolis.world import AgentId, Body


class Violation(AssertionError):
    """The log differs from every log of a run that is equal to lock-step execution."""


def audit(
    commits: Iterable[Commit],
    bodies: Mapping[AgentId, Body],
    distance: Callable[[Any, Any], float],
    *,
    barriers: Iterable[int] = (),
    versioned: bool = False,
) -> int:
    """Audits a whole log and returns the number of agent-steps in it.

    Args:
      bodies: the agents at step 0, by name.
      distance: the world's own metric, not the scheduler's.
      barriers: steps in which views and writes may be global.
      versioned: the world keeps old versions, so only the order of conflicting writes is checked.

    Raises:
      Violation: names the first commit that breaks a rule, and the rule.
    """
    log = list(commits)
    replayed = _Audit(bodies, distance, frozenset(barriers))
    for number, commit in enumerate(log):
        if commit.seq != number:
            raise Violation(f"commit {commit.seq} stands at place {number} of the log")
        replayed.add(commit, in_place=not versioned)
    if not versioned:
        replayed.check_views()
    return sum(len(c.members) for c in log)


class _Change(NamedTuple):
    """A change of a position by commit `seq` at `step`."""

    seq: int
    step: int


class _View(NamedTuple):
    """What an agent at `step` perceived from `pos`, after the first `viewed` commits."""

    viewed: int
    step: int
    pos: Any
    radius: float
    agent: AgentId


class _Audit:
    """Replays positions, reaches, steps and promises commit by commit."""

    def __init__(
        self,
        bodies: Mapping[AgentId, Body],
        distance: Callable[[Any, Any], float],
        barriers: frozenset[int],
    ) -> None:
        self.distance, self.barriers = distance, barriers
        self.pos = {name: body.pos for name, body in bodies.items()}
        self.reach = {name: body.reach for name, body in bodies.items()}
        self.steps = dict.fromkeys(bodies, 0)  # committed so far
        self.still_until = dict.fromkeys(bodies, 0)
        self.changes: dict[Any, list[_Change]] = defaultdict(list)  # by position, moves included
        self.writes: dict[Any, list[_Change]] = defaultdict(list)  # by position, without moves
        self.views: list[_View] = []

    def add(self, commit: Commit, *, in_place: bool) -> None:
        """Checks the next commit of the log and applies it."""
        self._check_members(commit)
        self._apply_moves_and_writes(commit)
        for name in commit.members:
            self.steps[name] += 1
        for name, until in commit.still:
            self.still_until[name] = max(self.still_until[name], until)
        self._apply_births_and_deaths(commit)
        if in_place:
            for name in commit.members:
                if name in self.steps:
                    self._check_isolation(commit.seq, name)

    def _check_members(self, commit: Commit) -> None:
        seq, step = commit.seq, commit.step
        for name in commit.members:
            if name not in self.steps:
                raise Violation(f"commit {seq}: {name!r} is not alive")
            if self.steps[name] != step:
                raise Violation(f"commit {seq}: {name!r} runs step {step} after {self.steps[name]} steps")
            if commit.viewed > seq:
                raise Violation(f"commit {seq} took its views after commit {commit.viewed}")
            if step not in self.barriers:
                view = _View(commit.viewed, step, self.pos[name], self.reach[name].perceive, name)
                self.views.append(view)

    def _apply_moves_and_writes(self, commit: Commit) -> None:
        seq, step, outcome = commit.seq, commit.step, commit.outcome
        for name, pos in outcome.moves.items():
            self._check_reach(commit, name, pos, self.reach[name].move)
            if pos != self.pos[name] and step < self.still_until[name]:
                raise Violation(
                    f"commit {seq}: {name!r} moves at step {step}, promised to stay until"
                    f" {self.still_until[name]}"
                )
        for name, pos, _ in outcome.writes:
            self._check_reach(commit, name, pos, self.reach[name].write)
            self._write(seq, step, pos)
        for name, pos in outcome.moves.items():
            if pos != self.pos[name]:
                self.changes[self.pos[name]].append(_Change(seq, step))
                self.changes[pos].append(_Change(seq, step))
                self.pos[name] = pos

    def _apply_births_and_deaths(self, commit: Commit) -> None:
        seq, step = commit.seq, commit.step
        for parent, name, body in commit.outcome.births:
            # The parent has moved already: its child is within one move of where it was, two of where it is.
            self._check_reach(commit, parent, body.pos, 2 * self.reach[parent].move)
            self.pos[name], self.reach[name] = body.pos, body.reach
            self.steps[name], self.still_until[name] = step + 1, 0
            self.changes[body.pos].append(_Change(seq, step))
        for name in commit.outcome.deaths:
            self.changes[self.pos[name]].append(_Change(seq, step))
            del self.pos[name], self.reach[name], self.steps[name], self.still_until[name]

    def _check_reach(self, commit: Commit, name: AgentId, pos: Any, limit: float) -> None:
        if name not in commit.members:
            raise Violation(f"commit {commit.seq} changes {name!r}, which is not a member of it")
        if commit.step not in self.barriers and self.distance(self.pos[name], pos) > limit:
            raise Violation(
                f"commit {commit.seq}: {name!r} reaches {pos} from {self.pos[name]}, limit {limit}"
            )

    def _write(self, seq: int, step: int, pos: Any) -> None:
        """Records a write. Writes of a position are in order of steps, those of one step in one commit."""
        if self.writes[pos]:
            last_seq, last_step = self.writes[pos][-1]
            if last_step > step or (last_step == step and last_seq != seq):
                raise Violation(
                    f"commit {seq} writes {pos} at step {step}, after commit {last_seq} at step {last_step}"
                )
        self.writes[pos].append(_Change(seq, step))
        self.changes[pos].append(_Change(seq, step))

    def _check_isolation(self, seq: int, name: AgentId) -> None:
        """Checks the paper's validity invariant for this agent against all others, for unequal reaches."""
        for other in self.steps:
            if self.steps[other] == self.steps[name]:
                continue
            ahead, behind = (name, other) if self.steps[name] > self.steps[other] else (other, name)
            a, b = self.reach[ahead], self.reach[behind]
            margin = max(a.write + b.perceive, b.write + a.perceive, a.write + b.write)
            last_step = self.steps[ahead] - 1
            free_steps = range(max(self.steps[behind], self.still_until[behind]), last_step)
            moves = len(free_steps) if b.move else 0
            distance = self.distance(self.pos[ahead], self.pos[behind])
            if distance <= margin - a.move + moves * b.move:
                raise Violation(
                    f"after commit {seq}, {ahead!r} at step {self.steps[ahead]} is {distance} from {behind!r}"
                    f" at step {self.steps[behind]}"
                )

    def check_views(self) -> None:
        """Checks that views contain all changes of earlier steps within their radius and no later ones."""
        for viewed, step, here, radius, name in self.views:
            for pos, changes in self.changes.items():
                if self.distance(here, pos) > radius:
                    continue
                for seq, change_step in changes:
                    if (change_step < step) != (seq < viewed):
                        error = "missed" if change_step < step else "already saw"
                        raise Violation(
                            f"{name!r} at step {step} {error} commit {seq}: {pos} changed at {change_step}"
                        )
