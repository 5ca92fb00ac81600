"""The protocols of worlds and agents, and the values that pass between them and the engine.

The results equal those of lock-step execution if a world and its agents meet four requirements:

* A view shows only what lies within the agent's `perceive` at that step. It is an immutable value.
* An agent's decision depends only on its view, its state, the step, `ctx.rng` and the replies of the model.
* Everything an outcome changes lies within reach of the agent that changes it (checked at commit).
* `resolve` does not depend on the order or grouping of its intents. Agents out of reach of one another may be
  resolved together or separately.
"""

import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from mixattn.evals.llm import Completion, Prompt
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.schedule.space import Position, Space

type AgentId = str
type Json = Any


@dataclass(frozen=True, slots=True)
class Body:
    """An agent's position, reach and private state when it enters the world."""

    pos: Position
    reach: Reach
    state: Json = None


@dataclass(frozen=True, slots=True)
class Intent:
    """An agent's decision for one step.

    Attributes:
      action: input of the world's `resolve`; JSON.
      state: the agent's private state from the next step on; JSON, never mutated in place.
      still_until: the agent promises not to move in any step before this one; 0 makes no promise.
    """

    action: Json = None
    state: Json = None
    still_until: int = 0


class Write(NamedTuple):
    """A change to the world made by `agent`; `at` must lie within its write reach."""

    agent: AgentId
    at: Position
    value: Json


class Birth(NamedTuple):
    """A new agent. It starts at the parent's next step, within the parent's move and with no larger reach."""

    parent: AgentId
    id: AgentId
    body: Body


@dataclass(slots=True)
class StepOutcome:
    """The effects of one step of a cluster.

    Members missing from `moves` stay. Members missing from `states` keep the state of their intent.
    """

    moves: Mapping[AgentId, Position] = field(default_factory=dict)
    writes: Sequence[Write] = ()
    states: Mapping[AgentId, Json] = field(default_factory=dict)
    births: Sequence[Birth] = ()
    deaths: Sequence[AgentId] = ()


class World(Protocol):
    """The shared environment: answers views, resolves intents and applies outcomes."""

    space: Space

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        """Resets the world to step 0 and returns the agents in it."""

    def view(self, agent: AgentId, step: int) -> Any:
        """Returns what `agent` perceives at `step`, as an immutable value that compares by content."""

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        """Returns the outcome of a cluster's intents, with conflicts resolved. Changes nothing."""

    def apply(self, step: int, outcome: StepOutcome) -> None:
        """Applies an outcome of `step`. Only the engine calls it."""

    def snapshot(self) -> Json:
        """Returns the whole state as JSON."""

    def restore(self, snapshot: Json) -> None:
        """Replaces the state by that of a snapshot."""


class Agent(Protocol):
    """Decides the steps of one agent.

    An agent may also have a method `fallback(view, ctx) -> Intent`. It is called instead of aborting the run
    when a model call has failed after its last retry.
    """

    async def proceed(self, view: Any, ctx: "StepContext") -> Intent:
        """Decides one step. May await `ctx.llm` any number of times."""


class CausalityError(RuntimeError):
    """An agent broke an assumption of the dependency rules, so the results could differ from lock-step."""


class StepContext:
    """What an agent may use in one step besides its view.

    Attributes:
      agent, step: the agent's name and the step it decides.
      state: the agent's private state after its previous step; treat as immutable.
      calls: model calls made in this step so far.
    """

    __slots__ = ("_call_llm", "_seed", "agent", "calls", "state", "step")

    def __init__(self, agent: AgentId, step: int, state: Json, seed: int, call_llm: "CallLlm") -> None:
        self.agent, self.step, self.state = agent, step, state
        self.calls = 0
        self._seed, self._call_llm = seed, call_llm

    @property
    def rng(self) -> random.Random:
        """A new generator that depends on (seed, agent, step) only; read it once per step."""
        return random.Random(stable_hash(self._seed, self.agent, self.step, "rng"))

    def llm(
        self, prompt: Prompt, *, max_tokens: int = 64, temperature: float = 0.0, stop: Sequence[str] = ()
    ) -> Awaitable[Completion]:
        """Calls the language model with the step as priority and the agent as client.

        Raises:
          CallFailed: after the last retry. Let it propagate to have `fallback` decide.
        """
        index = self.calls
        self.calls += 1
        return self._call_llm(self, index, prompt, max_tokens, temperature, stop)


type CallLlm = Callable[[StepContext, int, Prompt, int, float, Sequence[str]], Awaitable[Completion]]


def stable_hash(*parts: int | str) -> int:
    """Returns a 63-bit hash of `parts` that is equal in every process."""
    data = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1
