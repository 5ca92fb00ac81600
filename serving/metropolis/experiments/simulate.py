"""Simulates a trace in virtual time under any scheduling mode and server, and computes its lower bounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from serving.metropolis.experiments.bounds import (
    critical_path,
    mean_sights,
    sights,
    token_cost,
    unloaded_latency,
)
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.engine import Simulation
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.runtime.store import Commit
from serving.metropolis.schedule.rules import Reach, in_place, multi_version
from serving.metropolis.schedule.schedulers import Mode, Sights
from serving.metropolis.worlds.trace import AgentTrace, TraceWorld, trace_agents

RULES = {"in_place": in_place, "multi_version": multi_version}


@dataclass(unsafe_hash=True, kw_only=True)
class MetropolisVariant:
    """What a simulation changes about metropolis; the defaults are the paper's rule, corrected.

    Attributes:
      rule: name of the dependency rule.
      still: agents promise to stay as long as the trace shows them staying.
      perceive, move: replace the reach of the trace; -1 keeps it.
    """

    rule: Literal["in_place", "multi_version"] = "in_place"
    still: bool = False
    perceive: float = -1.0
    move: float = -1.0

    def check(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule {self.rule!r} is not one of {', '.join(RULES)}")

    def reach(self, trace: AgentTrace) -> Reach:
        """The reach of the agents of `trace`. Raises ValueError if the trace moves farther."""
        perceive = trace.reach.perceive if self.perceive < 0 else self.perceive
        move = trace.reach.move if self.move < 0 else self.move
        if move < trace.reach.move:
            raise ValueError(
                f"move={move} is below the trace's own {trace.reach.move}: its agents would break it"
            )
        return Reach(perceive, move)


def simulate_trace(
    trace: AgentTrace,
    mode: Mode,
    server: ServerConfig,
    *,
    variant: MetropolisVariant | None = None,
    seen: Sights | None = None,
    max_in_flight: int = 0,
    on_commit: Callable[[Commit], None] | None = None,
) -> RunStats:
    """Runs the whole trace and returns its statistics.

    All times are virtual, except `controller_s`.

    Args:
      variant: of metropolis; None is the paper's.
      seen: who perceives whom, for `oracle`; computed from the trace if None.
      max_in_flight: maximum number of concurrent calls; 0 means no maximum.
      on_commit: called with every commit.
    """
    variant = variant or MetropolisVariant()
    sim = Simulation(
        TraceWorld(trace, reach=variant.reach(trace)),
        trace_agents(trace, chained=mode != "no_dependency", still=variant.still and mode == "metropolis"),
        SimulatedServer(server),
        mode=mode,
        rule=RULES[variant.rule],
        sights=(sights(trace) if seen is None else seen) if mode == "oracle" else None,
        max_in_flight=max_in_flight,
        on_commit=on_commit,
    )
    return run_virtual(sim.run(trace.steps)).stats


@dataclass
class TraceBounds:
    """Lower bounds of a trace on a server.

    Attributes:
      critical_s: the critical path on an idle server.
      critical_tok: the critical path in tokens, the paper's unit.
      no_dependency_s: the time of all calls when none waits for another.
      mean_sights: mean number of agents within perception of an agent, itself included.
      seen: who perceives whom.
    """

    critical_s: float
    critical_tok: float
    no_dependency_s: float
    mean_sights: float
    seen: Sights = field(repr=False)

    @property
    def lower_s(self) -> float:
        """The larger of the two bounds; no schedule is faster."""
        return max(self.critical_s, self.no_dependency_s)


def trace_bounds(trace: AgentTrace, server: ServerConfig, seen: Sights | None = None) -> TraceBounds:
    """Computes the lower bounds of a trace on a server."""
    seen = sights(trace) if seen is None else seen
    return TraceBounds(
        critical_s=critical_path(trace, seen, unloaded_latency(server)),
        critical_tok=critical_path(trace, seen, token_cost),
        no_dependency_s=simulate_trace(trace, "no_dependency", server).elapsed_s,
        mean_sights=mean_sights(trace, seen),
        seen=seen,
    )
