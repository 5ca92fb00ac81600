"""Out-of-order multi-agent simulation with lock-step's results (AI Metropolis).

    sim = Simulation(world, agents, llm, mode="metropolis", seed=0, store=Sqlite("run.db"))
    result = sim.run_sync(until_step=360)

`rules` and `graph` decide who may run, `engine` runs them, `world` says what a world must be, `town` is one.
"""

from serving.metropolis.runtime.engine import Aborted, Simulation, SimulationRun
from serving.metropolis.runtime.retry import RetryPolicy
from serving.metropolis.runtime.store import InMemoryStore, SqliteStore
from serving.metropolis.schedule.rules import Reach, in_place, multi_version
from serving.metropolis.schedule.space import Grid, Hops
from serving.metropolis.world import (
    Agent,
    Body,
    CausalityError,
    Intent,
    StepContext,
    StepOutcome,
    World,
    Write,
)

__all__ = [
    "Aborted",
    "Agent",
    "Body",
    "CausalityError",
    "Grid",
    "Hops",
    "InMemoryStore",
    "Intent",
    "Reach",
    "RetryPolicy",
    "Simulation",
    "SimulationRun",
    "SqliteStore",
    "StepContext",
    "StepOutcome",
    "World",
    "Write",
    "in_place",
    "multi_version",
]
