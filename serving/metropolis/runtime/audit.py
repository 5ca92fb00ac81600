"""An auditor for commit logs. It knows the law, not the scheduler: no line of either is shared.

From the log alone it replays where everyone was, and asks of every commit: does each agent step 0, 1, 2, ...;
did its members stay within their reach; had its views been taken after every change that lock-step would have
made before, and before every change that lock-step would have made after; can nobody see another time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from serving.metropolis.runtime.store import Commit
from serving.metropolis.world import AgentId, Body


class Violation(AssertionError):
    """The log could not have come from a run that keeps lock-step's results."""


def audit(
    commits: Iterable[Commit],
    bodies: Mapping[AgentId, Body],
    distance: Callable[[Any, Any], float],
    *,
    barriers: Iterable[int] = (),
    versioned: bool = False,
) -> int:
    """Audits a whole log; returns the number of agent-steps it covers.

    Args:
      bodies: who was there at step 0, and where.
      distance: the world's own metric, not the scheduler's.
      versioned: the world answers by version, so only the order of conflicting writes is checked.

    Raises:
      Violation: naming the first commit that breaks the law, and how.
    """
    log = list(commits)
    audit = _Audit(bodies, distance, frozenset(barriers))
    for number, commit in enumerate(log):
        if commit.seq != number:
            raise Violation(f"commit {commit.seq} stands at place {number}")
        audit.enter(commit, in_place=not versioned)
    if not versioned:
        audit.check_views()
    return sum(len(c.members) for c in log)


class _Audit:
    def __init__(self, bodies, distance, barriers):
        self.distance, self.barriers = distance, barriers
        self.at = {name: body.pos for name, body in bodies.items()}
        self.reach = {name: body.reach for name, body in bodies.items()}
        self.done = dict.fromkeys(bodies, 0)
        self.still = dict.fromkeys(bodies, 0)
        self.touched: dict[Any, list[tuple[int, int]]] = defaultdict(list)  # cell -> (seq, step) of changes
        self.writes: dict[Any, list[tuple[int, int]]] = defaultdict(list)  # the same without moves
        self.looks: list[tuple[int, int, Any, float, AgentId]] = []  # (viewed, step, where, radius, who)

    def enter(self, commit: Commit, *, in_place: bool) -> None:
        seq, step, out = commit.seq, commit.step, commit.outcome
        for name in commit.members:
            if name not in self.done:
                raise Violation(f"commit {seq}: {name!r} is not alive")
            if self.done[name] != step:
                raise Violation(f"commit {seq}: {name!r} runs step {step} after {self.done[name]} steps")
            if commit.viewed > seq:
                raise Violation(f"commit {seq} took its views after commit {commit.viewed}")
            if step not in self.barriers:
                self.looks.append((commit.viewed, step, self.at[name], self.reach[name].perceive, name))
        for name, where in out.moves.items():
            self._reaches(commit, name, where, self.reach[name].move)
            if where != self.at[name] and step < self.still[name]:
                raise Violation(f"commit {seq}: {name!r} moves at step {step}, promised {self.still[name]}")
        for name, where, _ in out.writes:
            self._reaches(commit, name, where, self.reach[name].write)
            self._write(seq, step, where)
        for name, where in out.moves.items():
            if where != self.at[name]:
                self.touched[self.at[name]].append((seq, step))
                self.touched[where].append((seq, step))
                self.at[name] = where
        for name in commit.members:
            self.done[name] += 1
        for name, until in commit.still:
            self.still[name] = max(self.still[name], until)
        for parent, name, body in out.births:
            self._reaches(commit, parent, body.pos, self.reach[parent].move + self.reach[parent].move)
            self.at[name], self.reach[name], self.done[name], self.still[name] = (
                body.pos,
                body.reach,
                step + 1,
                0,
            )
            self.touched[body.pos].append((seq, step))
        for name in out.deaths:
            self.touched[self.at[name]].append((seq, step))
            for table in (self.at, self.reach, self.done, self.still):
                del table[name]
        if in_place:
            for name in commit.members:
                if name in self.done:
                    self._nobody_sees_another_time(seq, name)

    def _reaches(self, commit: Commit, name: AgentId, where: Any, limit: float) -> None:
        if name not in commit.members:
            raise Violation(f"commit {commit.seq} changes {name!r}, which has no part in it")
        if commit.step not in self.barriers and self.distance(self.at[name], where) > limit:
            raise Violation(
                f"commit {commit.seq}: {name!r} reaches {where} from {self.at[name]}, limit {limit}"
            )

    def _write(self, seq: int, step: int, where: Any) -> None:
        """Writes of one cell come in the order of steps, those of one step in one commit."""
        if self.writes[where]:
            last_seq, last_step = self.writes[where][-1]
            if last_step > step or (last_step == step and last_seq != seq):
                raise Violation(
                    f"commit {seq} writes {where} at step {step}; commit {last_seq} has at step {last_step}"
                )
        self.writes[where].append((seq, step))
        self.touched[where].append((seq, step))

    def _nobody_sees_another_time(self, seq: int, name: AgentId) -> None:
        """The paper's validity invariant, for this agent against all, with unequal reaches."""
        for other in self.done:
            if self.done[other] == self.done[name]:
                continue
            ahead, late = (name, other) if self.done[name] > self.done[other] else (other, name)
            a, b = self.reach[ahead], self.reach[late]
            margin = max(a.write + b.perceive, b.write + a.perceive, a.write + b.write)
            ran = self.done[ahead] - 1
            moves = sum(1 for s in range(self.done[late], ran) if s >= self.still[late]) if b.move else 0
            apart = self.distance(self.at[ahead], self.at[late])
            if apart <= margin - a.move + moves * b.move:
                raise Violation(
                    f"after commit {seq}, {ahead!r} at step {self.done[ahead]} is {apart} from {late!r}"
                    f" at step {self.done[late]}"
                )

    def check_views(self) -> None:
        for viewed, step, here, radius, name in self.looks:
            for cell, changes in self.touched.items():
                if self.distance(here, cell) > radius:
                    continue
                for seq, when in changes:
                    if (when < step) != (seq < viewed):
                        early = "missed" if when < step else "already saw"
                        raise Violation(
                            f"{name!r} at step {step} {early} commit {seq}: {cell} changed at step {when}"
                        )
