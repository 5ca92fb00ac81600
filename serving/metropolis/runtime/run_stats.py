"""What a run was like: load on the model, cluster sizes, leads, waiting, and the controller's own time."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class RunStats:
    """Counters the engine keeps as it goes; times on its clock, `controller_s` in real seconds.

    Attributes:
      outstanding_s: integral of calls in flight over time.
      clusters: how many commits had each size.
      leads: how many agent-steps ran this many steps ahead of the slowest agent.
      waited_s: by agent, time between becoming idle and running.
    """

    start_s: float = 0.0
    end_s: float = 0.0
    commits: int = 0
    agent_steps: int = 0
    calls: int = 0
    reused: int = 0
    retries: int = 0
    fallbacks: int = 0
    prompt_tok: int = 0
    output_tok: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    outstanding_s: float = 0.0
    controller_s: float = 0.0
    clusters: Counter[int] = field(default_factory=Counter)
    leads: Counter[int] = field(default_factory=Counter)
    waited_s: list[float] = field(default_factory=list)
    _since_s: float = 0.0

    def flight(self, change: int, now_s: float) -> None:
        """A call starts (+1) or ends (-1)."""
        self.outstanding_s += self.in_flight * (now_s - self._since_s)
        self._since_s = now_s
        self.in_flight += change
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def begin(self, now_s: float, agents: int) -> None:
        self.start_s = self._since_s = now_s
        self.waited_s = [0.0] * agents

    def committed(self, agents: int, lead: int) -> None:
        """A cluster of `agents` has taken its step, `lead` steps ahead of the slowest agent."""
        self.commits += 1
        self.agent_steps += agents
        self.clusters[agents] += 1
        self.leads[lead] += agents

    def answered(self, prompt_tok: int, output_tok: int, retries: int) -> None:
        """A call has its answer."""
        self.calls += 1
        self.retries += retries
        self.prompt_tok += prompt_tok
        self.output_tok += output_tok

    @property
    def elapsed_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def parallelism(self) -> float:
        """Mean calls in flight over the whole run (the paper's "achieved parallelism")."""
        return self.outstanding_s / self.elapsed_s if self.elapsed_s else 0.0

    def summary(self) -> dict[str, float]:
        """The figures to report, as plain numbers."""
        return {
            "elapsed_s": self.elapsed_s,
            "commits": self.commits,
            "agent_steps": self.agent_steps,
            "calls": self.calls,
            "calls_per_s": self.calls / self.elapsed_s if self.elapsed_s else 0.0,
            "prompt_tok": self.prompt_tok,
            "output_tok": self.output_tok,
            "retries": self.retries,
            "fallbacks": self.fallbacks,
            "parallelism": self.parallelism,
            "peak_in_flight": self.peak_in_flight,
            "mean_cluster": self.agent_steps / self.commits if self.commits else 0.0,
            "largest_cluster": max(self.clusters, default=0),
            "largest_lead": max(self.leads, default=0),
            "mean_waited_s": sum(self.waited_s) / len(self.waited_s) if self.waited_s else 0.0,
            "controller_us_per_commit": 1e6 * self.controller_s / self.commits if self.commits else 0.0,
        }
