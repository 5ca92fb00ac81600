"""Recovery: rebuilds world and agents from the checkpoints and commits in a store."""

from collections.abc import Iterable, Mapping
from typing import Any

from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.runtime.store import Checkpoint, Store, position_from_json
from serving.metropolis.schedule.rules import Reach, Rule, multi_version
from serving.metropolis.schedule.space import Space, check_position
from serving.metropolis.world import Agent, AgentId, Body, World


def initial_table(world: World, agents: Mapping[AgentId, Agent], seed: int) -> AgentTable:
    """Resets the world and returns the table of its agents, numbered by sorted name.

    Raises:
      ValueError: an agent of the world is not among `agents`.
    """
    table = AgentTable()
    bodies = world.reset(seed)
    for name in sorted(bodies):
        if name not in agents:
            raise ValueError(f"the world holds {name!r}, but there is no agent of that name")
        body = bodies[name]
        try:
            check_position(world.space, body.pos)
        except ValueError as why:
            raise ValueError(f"agent {name!r} starts at {body.pos!r}: {why}") from why
        table.add(name, body.pos, body.reach, body.state, 0)
    return table


def start_facts(space: Space, table: AgentTable, rule: Rule, barriers: Iterable[int]) -> dict[str, Any]:
    """What an audit or a picture of a run needs to know besides its commits, as JSON."""
    reaches = [[reach.perceive, reach.move, reach.write] for reach in table.reach]
    return {
        "start": [list(each) for each in zip(table.names, table.pos, reaches)],
        "metric": getattr(space, "metric", None),  # None: a space of its own
        "versioned": rule is multi_version,
        "barriers": sorted(barriers),
    }


def bodies_at_start(about: Mapping[str, Any]) -> dict[AgentId, Body]:
    """The agents at step 0, from the facts of a log."""
    return {name: Body(position_from_json(pos), Reach(*reach)) for name, pos, reach in about["start"]}


def commits_to_keep(store: Store, resume: bool, upto: int | None) -> int:
    """Returns how many of the stored commits a run starts from.

    Raises:
      ValueError: the store is not empty and the run does not resume it, or it holds fewer than `upto`
        commits.
    """
    stored = sum(1 for _ in store.commits())
    if stored and not resume:
        raise ValueError(f"the store holds a run of {stored} commits; resume it or name another one")
    keep = stored if upto is None else upto
    if keep > stored:
        raise ValueError(f"cannot resume from commit {keep}: the store holds {stored}")
    return keep


def recover(store: Store, world: World, table: AgentTable, keep: int) -> tuple[AgentTable, int]:
    """Brings the world and the agents to their state after `keep` commits.

    Loads the last checkpoint and applies the commits after it.

    Returns:
      The table, which is `table` if there is no checkpoint, and the number of the next commit.
    """
    seq = 0
    last = store.last_checkpoint(keep)
    if last is not None:
        world.restore(last.state["world"])
        table, seq = AgentTable.from_snapshot(last.state), last.seq
    for commit in store.commits():
        if seq <= commit.seq < keep:
            world.apply(commit.step, commit.outcome)
            table.apply(commit.step, commit.outcome, dict(commit.still))
            for name in commit.members:
                table.start_step[table.number[name]] += 1
            seq = commit.seq + 1
    return table, seq


def make_checkpoint(seq: int, world: World, table: AgentTable, steps: list[int]) -> Checkpoint:
    """Returns the state after `seq` commits. `steps`: steps committed, by agent number."""
    return Checkpoint(seq, {"world": world.snapshot(), **table.snapshot(steps)})
