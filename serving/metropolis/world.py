"""What the engine knows of a world and of an agent, and the nouns that pass between them.

The engine keeps lock-step's results if a world and its agents keep four promises:

* a view shows only what lies within the agent's `perceive` at that step, as an immutable value;
* what an agent decides depends on its view, its state, the step, `ctx.rng` and the replies it was given;
* everything an outcome changes lies within reach of the agent that changed it (checked at commit);
* `resolve` does not depend on the order or grouping of its intents: agents out of reach of one another may be
  resolved apart or together.
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
    """How an agent enters the world."""

    pos: Position
    reach: Reach
    state: Json = None


@dataclass(frozen=True, slots=True)
class Intent:
    """What an agent wants of its step.

    Attributes:
      action: for the world's `resolve`; JSON.
      state: the agent's private state from the next step on; JSON, never mutated in place.
      still_until: a promise not to move in any step before this one; 0 promises nothing.
    """

    action: Json = None
    state: Json = None
    still_until: int = 0


class Write(NamedTuple):
    """A change of the world made by `agent`; `at` must be within its write reach."""

    agent: AgentId
    at: Position
    value: Json


class Birth(NamedTuple):
    """A new agent: it appears at the parent's next step, within the parent's move and reach."""

    parent: AgentId
    id: AgentId
    body: Body


@dataclass(slots=True)
class StepOutcome:
    """What a cluster's step does. Members missing from `moves` stay; from `states`, keep their intent's."""

    moves: Mapping[AgentId, Position] = field(default_factory=dict)
    writes: Sequence[Write] = ()
    states: Mapping[AgentId, Json] = field(default_factory=dict)
    births: Sequence[Birth] = ()
    deaths: Sequence[AgentId] = ()


class World(Protocol):
    space: Space

    def reset(self, seed: int) -> Mapping[AgentId, Body]:
        """Puts the world at step 0; who is in it."""

    def view(self, agent: AgentId, step: int) -> Any:
        """What `agent` perceives at `step`: an immutable value that compares by content."""

    def resolve(self, step: int, intents: Mapping[AgentId, Intent]) -> StepOutcome:
        """What a cluster's intents come to; settles conflicts; changes nothing."""

    def apply(self, step: int, outcome: StepOutcome) -> None:
        """Makes an outcome of `step` real. Only the engine calls it."""

    def snapshot(self) -> Json: ...
    def restore(self, snapshot: Json) -> None: ...


class Agent(Protocol):
    async def proceed(self, view: Any, ctx: "StepContext") -> Intent:
        """One step: may await `ctx.llm` any number of times."""


class WithFallback(Agent, Protocol):
    def fallback(self, view: Any, ctx: "StepContext") -> Intent:
        """What to do when the language model stays silent after every retry."""


class CausalityError(RuntimeError):
    """An agent did something that the rules assume it cannot; results could differ from lock-step."""


class StepContext:
    """What an agent may use in one step besides its view.

    Attributes:
      agent, step: whose step, and which.
      state: the agent's private state as its last step left it; treat as immutable.
    """

    __slots__ = ("_ask", "_seed", "agent", "calls", "state", "step")

    def __init__(self, agent: AgentId, step: int, state: Json, seed: int, ask: "AskModel"):
        self.agent, self.step, self.state = agent, step, state
        self.calls = 0
        self._seed, self._ask = seed, ask

    @property
    def rng(self) -> random.Random:
        """A fresh generator that depends on (seed, agent, step) only; take it once a step."""
        return random.Random(key(self._seed, self.agent, self.step, "rng"))

    def llm(
        self, prompt: Prompt, *, max_tokens: int = 64, temperature: float = 0.0, stop: Sequence[str] = ()
    ) -> Awaitable[Completion]:
        """Asks the language model; the step is the priority, the agent the client.

        Raises:
          CallFailed: after the last retry. Let it pass to have `fallback` decide.
        """
        index = self.calls
        self.calls += 1
        return self._ask(self, index, prompt, max_tokens, temperature, stop)


type AskModel = Callable[[StepContext, int, Prompt, int, float, Sequence[str]], Awaitable[Completion]]


def key(*parts: int | str) -> int:
    """A 63-bit number that depends on all parts and on nothing else."""
    data = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1
