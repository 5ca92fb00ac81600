"""Out-of-order multi-agent simulation with the results of lock-step execution (AI Metropolis).

    sim = Simulation(world, agents, llm, mode="metropolis", seed=0, store=SqliteStore("run.db"))
    result = sim.run_sync(until_step=360)

`schedule` decides which agents may run, `runtime` runs them, `world` defines the protocols of worlds and
agents, `worlds` and `town` implement them.
"""

from mixattn.evals.llm import RetryPolicy
from serving.metropolis.runtime.engine import Aborted, Simulation, SimulationRun
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
