"""Statistics of a run: model load, cluster sizes, leads, waiting times and the controller's own time."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class RunStats:
    """Counters updated during a run. Times are on the engine's clock; `controller_s` is in real seconds.

    Attributes:
      reused: calls answered from the log instead of the model.
      outstanding_s: integral of calls in flight over time.
      clusters: number of commits by cluster size.
      leads: number of agent-steps by lead over the slowest agent, in steps.
      waited_s: by agent, total time between becoming idle and running.
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

    def record_in_flight(self, change: int, now_s: float) -> None:
        """Records that a call starts (`change` = +1) or ends (-1)."""
        self.outstanding_s += self.in_flight * (now_s - self._since_s)
        self._since_s = now_s
        self.in_flight += change
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def begin(self, now_s: float, agents: int) -> None:
        """Starts the clock of a run with this many agents."""
        self.start_s = self._since_s = now_s
        self.waited_s = [0.0] * agents

    def record_commit(self, agents: int, lead: int) -> None:
        """Records a commit of `agents` agents that is `lead` steps ahead of the slowest agent."""
        self.commits += 1
        self.agent_steps += agents
        self.clusters[agents] += 1
        self.leads[lead] += agents

    def record_call(self, prompt_tok: int, output_tok: int, retries: int) -> None:
        """Records a completed call."""
        self.calls += 1
        self.retries += retries
        self.prompt_tok += prompt_tok
        self.output_tok += output_tok

    @property
    def elapsed_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def parallelism(self) -> float:
        """Mean number of calls in flight (the paper's "achieved parallelism")."""
        return self.outstanding_s / self.elapsed_s if self.elapsed_s else 0.0

    def summary(self) -> dict[str, float]:
        """Returns the figures to report, by name."""
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
