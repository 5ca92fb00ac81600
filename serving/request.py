"""The nouns of serving: what a client asks for, how to sample it, and what comes back.

Standard library only: the policies, the simulator and the engine share these.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

type Client = str
type RequestId = str
type FinishReason = Literal["stop", "length", "cancel", "deadline", "refused", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request's tokens are chosen. `temperature` below 1e-6 is greedy."""

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self):
        for name, ok, law in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k == -1 or self.top_k >= 1, "-1 (off) or at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
        ):
            if not ok:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it must be {law}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One client's ask.

    Attributes:
      client: whose share of the server this uses; the unit of fairness.
      prompt_ids: token ids, at least one.
      sampling: how tokens are chosen and when to stop.
      id: unique among live requests; the engine names it if empty.
      salt: requests share cached prefixes only with requests of the same salt.
    """

    client: Client
    prompt_ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    id: RequestId = ""
    salt: str = ""

    def __post_init__(self):
        if len(self.prompt_ids) == 0:
            raise ValueError(f"request {self.id!r} of client {self.client!r} has an empty prompt")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a scheduling policy may know of a request: sizes and names, never tokens.

    Attributes:
      seq: arrival order, unique; the last tie-break everywhere.
      prompt_tok: prompt length, in tokens.
      max_output_tok: the most tokens it may produce.
      predicted_tok: a guess of its output length from outside, if there is one.
    """

    id: RequestId
    client: Client
    seq: int
    prompt_tok: int
    max_output_tok: int
    predicted_tok: int | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """A finished request, in the order it was asked for."""

    id: RequestId
    client: Client
    output_ids: list[int]
    finish_reason: FinishReason
    prompt_tok: int
    hit_tok: int
    arrival_s: float
    admit_s: float
    first_token_s: float
    finish_s: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step brought a request.

    Attributes:
      ids: tokens new since the last delta.
      output: the whole result, on the request's last delta only.
    """

    id: RequestId
    client: Client
    ids: list[int]
    output: Output | None = None
