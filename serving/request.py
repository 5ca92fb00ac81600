"""The nouns of serving: what a client asks for, how to sample it, and what comes back.

Standard library only: the policies, the simulator and the engine share these.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

type Client = str
type RequestId = str
type FinishReason = Literal["stop", "length", "cancel", "deadline", "refused", "error"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request's tokens are chosen, and what ends it.

    Attributes:
      max_tokens, min_tokens: no stop ends it before `min_tokens`.
      temperature: below 1e-6 is greedy. top_k (-1: off), top_p, min_p: see `mixattn.sample.Knobs`.
      repetition_penalty: divides positive logits of tokens in prompt or output, multiplies negative ones.
      frequency_penalty, presence_penalty: taken off a token's logit for each, and for any, time it was
        output.
      logit_bias: token id -> added to its logit.
      seed: the same seed draws the same tokens in any company; None: derived from the request's id.
      n: how many outputs, drawn apart. Output 0 is what n = 1 would give.
      stop: texts that end it. They are not part of its text unless `include_stop`.
      stop_ids: tokens that end it; the last of `output_ids` then.
      ignore_eos: go on behind the model's own end tokens.
      logprobs: None: none; k: log-probability of each output token and of the k likeliest in its place, after
        penalties and bias, before temperature and filters.
      prompt_logprobs: the same for each prompt token but the first. Such a prompt is computed whole, and
        not cached.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self):
        for name, ok, law in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            (
                "min_tokens",
                0 <= self.min_tokens <= self.max_tokens,
                f"from 0 to max_tokens={self.max_tokens}",
            ),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k == -1 or self.top_k >= 1, "-1 (off) or at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 2, "above 0 and at most 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("logit_bias", all(map(math.isfinite, self.logit_bias.values())), "finite"),
            ("n", 1 <= self.n <= 128, "from 1 to 128"),
            ("stop", all(self.stop), "without empty texts"),
            ("stop_ids", all(i >= 0 for i in self.stop_ids), "ids from 0 up"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "None or at least 0"),
            (
                "prompt_logprobs",
                self.prompt_logprobs is None or self.prompt_logprobs >= 0,
                "None or at least 0",
            ),
        ):
            if not ok:
                raise ValueError(f"sampling.{name} is {getattr(self, name)}; it must be {law}")

    @property
    def shaped(self) -> bool:
        """Whether its logits are changed by penalties or a bias."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias)

    @property
    def top(self) -> int:
        """Alternatives whose log-probabilities are asked for; -1: no log-probabilities at all."""
        asked = (self.logprobs, self.prompt_logprobs)
        return max(-1 if k is None else k for k in asked)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One client's ask.

    Attributes:
      client: whose share of the server this uses; the unit of fairness.
      prompt_ids: token ids, at least one.
      sampling: how tokens are chosen and when to stop.
      id: unique among live requests; the engine names it if empty.
      salt: requests share cached prefixes only with requests of the same salt.
      deadline_s: seconds after arrival at which it ends, whatever it has.
      priority: among what a policy serves in order of arrival (a client's own requests; with `fcfs`, all
        requests), higher goes first.
    """

    client: Client
    prompt_ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    id: RequestId = ""
    salt: str = ""
    deadline_s: float | None = None
    priority: int = 0

    def __post_init__(self):
        if len(self.prompt_ids) == 0:
            raise ValueError(f"request {self.id!r} of client {self.client!r} has an empty prompt")
        if self.deadline_s is not None and not self.deadline_s >= 0:
            raise ValueError(f"request {self.id!r} has a deadline of {self.deadline_s} s after its arrival")
        if not -(2**20) <= self.priority <= 2**20:
            raise ValueError(f"request {self.id!r} has priority {self.priority}; at most 2**20 either way")


class Logprob(NamedTuple):
    """One token's log-probability, and the likeliest tokens in its place with theirs, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """What a scheduling policy may know of a request: sizes and names, never tokens.

    Attributes:
      seq: arrival order, unique; the last tie-break everywhere. A priority is a head start in it.
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
    """A finished request, in the order it was asked for.

    Attributes:
      index: which of its `n` outputs.
      text: its text, where the engine can decode; without what ended it.
      stop: the id or the text that ended it, if one did.
      logprobs, prompt_logprobs: if asked for; the prompt's begin with its second token.
      hit_tok: prompt tokens found in the cache when it first ran.
      admit_s, first_token_s: -1 if that never came.
    """

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
    index: int = 0
    text: str = ""
    stop: int | str | None = None
    logprobs: Sequence[Logprob] = ()
    prompt_logprobs: Sequence[Logprob] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step brought a request.

    Attributes:
      ids: tokens new since the last delta.
      output: the whole result, on the last delta only.
      index: which of its `n` outputs.
      text: new text; may lag behind the ids, never shows part of a stop text or of a character.
      logprobs: of `ids`, if asked for.
    """

    id: RequestId
    client: Client
    ids: list[int]
    output: Output | None = None
    index: int = 0
    text: str = ""
    logprobs: Sequence[Logprob] = ()
