"""Replays a trace in virtual time under any mode and server, and says how long it took and why."""

from dataclasses import dataclass, field
from typing import Any, Literal

from serving.metropolis.experiments.bounds import critical_path, mean_sights, sights, tokens, unloaded
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.engine import Simulation
from serving.metropolis.runtime.run_stats import RunStats
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.schedule.rules import Reach, in_place, multi_version
from serving.metropolis.schedule.schedulers import Mode, Sights
from serving.metropolis.worlds.trace import AgentTrace, TraceWorld, agents

RULES = {"in_place": in_place, "multi_version": multi_version}


@dataclass(unsafe_hash=True, kw_only=True)
class Variant:
    """What a replay changes about metropolis; the defaults are the paper's, corrected.

    Attributes:
      rule: margins, by name.
      still: agents promise to stay as long as the trace shows them staying.
      perceive, move: other reaches than the trace's; -1 keeps them.
    """

    rule: Literal["in_place", "multi_version"] = "in_place"
    still: bool = False
    perceive: float = -1.0
    move: float = -1.0

    def check(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule {self.rule!r} is not one of {', '.join(RULES)}")

    def reach(self, trace: AgentTrace) -> Reach:
        see = trace.reach.perceive if self.perceive < 0 else self.perceive
        go = trace.reach.move if self.move < 0 else self.move
        if go < trace.reach.move:
            raise ValueError(
                f"move={go} is below the trace's own {trace.reach.move}: its agents would break it"
            )
        return Reach(see, go)


def replay(
    trace: AgentTrace,
    mode: Mode,
    server: ServerConfig,
    *,
    variant: Variant | None = None,
    seen: Sights | None = None,
    max_in_flight: int = 0,
    on_commit: Any = None,
) -> RunStats:
    """Runs the whole trace; times in the meter are virtual, except the controller's own."""
    variant = variant or Variant()
    sim = Simulation(
        TraceWorld(trace, reach=variant.reach(trace)),
        agents(trace, chained=mode != "no_dependency", still=variant.still and mode == "metropolis"),
        SimulatedServer(server),
        mode=mode,
        rule=RULES[variant.rule],
        sights=(sights(trace) if seen is None else seen) if mode == "oracle" else None,
        max_in_flight=max_in_flight,
        on_commit=on_commit,
    )
    return run_virtual(sim.run(trace.steps)).stats


@dataclass
class Bounds:
    """Lower bounds of a trace on a server, in seconds; `critical_tok` is the paper's own unit."""

    critical_s: float
    critical_tok: float
    no_dependency_s: float
    mean_sights: float
    seen: Sights = field(repr=False)

    @property
    def lower_s(self) -> float:
        """No schedule can beat the larger of the two."""
        return max(self.critical_s, self.no_dependency_s)


def bounds(trace: AgentTrace, server: ServerConfig, seen: Sights | None = None) -> Bounds:
    """Critical path on an idle server, and the time of all calls made at once."""
    seen = sights(trace) if seen is None else seen
    return Bounds(
        critical_s=critical_path(trace, seen, unloaded(server)),
        critical_tok=critical_path(trace, seen, tokens),
        no_dependency_s=replay(trace, "no_dependency", server).elapsed_s,
        mean_sights=mean_sights(trace, seen),
        seen=seen,
    )
