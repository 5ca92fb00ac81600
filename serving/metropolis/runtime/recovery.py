"""Recovery: rebuilds world and agents from the checkpoints and commits in a store."""

from collections.abc import Mapping

from serving.metropolis.runtime.agent_table import AgentTable
from serving.metropolis.runtime.store import Checkpoint, Store
from serving.metropolis.schedule.space import check_position
from serving.metropolis.world import Agent, AgentId, World


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
