"""Requests and outputs: what a client asks for, how to sample it, and what comes back.

Standard library only: the policies, the simulator and the engine share these.
"""

import math
import operator
import reprlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, Protocol

type ClientId = str
type RequestId = str
MAX_INT = 2**31 - 1  # the device's int32
MAX_FLOAT = 1e30  # numbers up to it, and down to one over it, are safe in float32

# `lost`: every worker that it was given to was lost; only a cluster says so.
type FinishReason = Literal["stop", "length", "cancel", "deadline", "refused", "error", "lost"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one request's tokens are chosen, and what ends it.

    Attributes:
      max_tokens, min_tokens: length limits; no stop condition ends it before `min_tokens`.
      temperature: below 1e-6 is greedy. top_k (-1 or 0: off), top_p (0: the likeliest token only), min_p: see
        `mixattn.sample.SamplingParams`.
      repetition_penalty: divides positive logits of tokens in prompt or output, multiplies negative ones.
      frequency_penalty, presence_penalty: subtracted from a token's logit for each time, and once if at all,
        it was output.
      logit_bias: token id -> added to its logit.
      seed: the same seed draws the same tokens, independent of batch composition; None: derived from the
        request's id.
      n: number of outputs, sampled independently. Output 0 is what n = 1 gives.
      stop: texts that end it. They are not part of its text unless `include_stop`.
      stop_ids: tokens that end it; the last of `output_ids` then.
      ignore_eos: continue after the model's own end tokens.
      logprobs: None: none; k: log-probability of each output token and of the k likeliest tokens, after
        penalties and bias, before temperature and filters.
      prompt_logprobs: the same for each prompt token but the first. Such a prompt is computed whole and not
        cached.
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

    def __post_init__(self) -> None:
        for name, ok, rule in _rules(self):
            if not ok:
                raise ValueError(f"sampling.{name} is {reprlib.repr(getattr(self, name))}; it must be {rule}")
        if self.top_k == 0:
            object.__setattr__(self, "top_k", -1)
        if self.top_p == 0:
            object.__setattr__(self, "top_p", 1 / MAX_FLOAT)

    @property
    def has_penalties(self) -> bool:
        """Whether penalties or a bias change its logits."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias)

    @property
    def top(self) -> int:
        """Alternatives whose log-probabilities are requested; -1: no log-probabilities at all."""
        asked = (self.logprobs, self.prompt_logprobs)
        return max(-1 if k is None else k for k in asked)


def _rules(s: Sampling) -> Iterator[tuple[str, bool, str]]:
    """Field, whether its value is allowed, and what is; in order, since later checks rely on earlier ones."""
    count = f"a whole number from 1 to {MAX_INT}"
    yield "max_tokens", _whole(s.max_tokens, 1), count
    yield "min_tokens", _whole(s.min_tokens, 0, s.max_tokens), f"from 0 to max_tokens={s.max_tokens}"
    yield "temperature", _real(s.temperature, 0, MAX_FLOAT), f"a number from 0 to {MAX_FLOAT}"
    yield "top_k", _whole(s.top_k, -1), f"-1 or 0 (off) or {count}"
    yield (
        "top_p",
        _real(s.top_p, 1 / MAX_FLOAT, 1) or _real(s.top_p, 0, 0),
        f"0 or a number from {1 / MAX_FLOAT} to 1",
    )
    yield "min_p", _real(s.min_p, 0, 1), "a number from 0 to 1"
    yield (
        "repetition_penalty",
        _real(s.repetition_penalty, 1 / MAX_FLOAT, 2),
        f"a number from {1 / MAX_FLOAT} to 2",
    )
    yield "frequency_penalty", _real(s.frequency_penalty, -2, 2), "a number from -2 to 2"
    yield "presence_penalty", _real(s.presence_penalty, -2, 2), "a number from -2 to 2"
    yield "logit_bias", _biases(s.logit_bias), f"token ids with numbers of at most {MAX_FLOAT} either way"
    yield "seed", s.seed is None or _number(s.seed, Integral), "None or a whole number"
    yield "n", _whole(s.n, 1, 128), "a whole number from 1 to 128"
    yield (
        "stop",
        _all(s.stop, lambda text: isinstance(text, str) and text and is_text(text)),
        "a tuple of texts, none empty",
    )
    yield "include_stop", isinstance(s.include_stop, bool), "True or False"
    yield "stop_ids", _all(s.stop_ids, lambda id: _whole(id, 0)), "a tuple of ids from 0 up"
    yield "ignore_eos", isinstance(s.ignore_eos, bool), "True or False"
    for name in ("logprobs", "prompt_logprobs"):
        k = getattr(s, name)
        yield name, k is None or _whole(k, 0), "None or a whole number from 0 up"


def is_text(value: str) -> bool:
    """Whether a string can be written down; one with half of a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _whole(value: Any, low: int, high: int = MAX_INT) -> bool:
    return _number(value, Integral) and low <= value <= high


def _real(value: Any, low: float, high: float) -> bool:
    return _number(value, Real) and low <= value <= high


def _all(values: Any, ok: Callable[[Any], Any]) -> bool:
    """A str is not accepted as a list of texts."""
    return isinstance(values, tuple | list) and all(map(ok, values))


def _biases(values: Any) -> bool:
    return isinstance(values, Mapping) and all(
        _whole(id, 0) and _real(bias, -MAX_FLOAT, MAX_FLOAT) for id, bias in values.items()
    )


class TokenGrammar(Protocol):
    """Which tokens may come next in one output."""

    def fill(self, allowed_W: Any) -> None:
        """Sets bit `v % 32` of word `v // 32` of a uint32 row for each token `v` that may come next."""

    def accept(self, id: int) -> Literal["stop", "length"] | None:
        """Goes on by a token; tells why the output ends with it, if it does."""


@dataclass(frozen=True, kw_only=True)
class RequestKeep:
    """How a request's keys are cut, where that differs from the engine's `keep`.

    Attributes:
      scorer: one of those that the engine has compiled in; "" = its default.
      budget: keys (int), or a share (float) of what the engine's `share_of` names; None = its default.
      everything: evict nothing. A request that fits its slab keeps everything anyway.
    """

    scorer: str = ""
    budget: int | float | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, str) or not isinstance(self.everything, bool):
            raise ValueError(f"keep.scorer is {self.scorer!r} and keep.everything {self.everything!r}")
        budget = self.budget
        whole = _whole(budget, 1)
        if budget is not None and not whole and not (type(budget) is float and 0 < budget <= 1):
            raise ValueError(
                f"keep.budget is {budget!r}; it must be a number of keys from 1 up, or a share in (0, 1]"
            )
        if self.everything and (budget is not None or self.scorer):
            raise ValueError("keep.everything evicts nothing; keep.budget and keep.scorer say how to evict")

    @classmethod
    def read(cls, fields: Any) -> "RequestKeep":
        """From decoded JSON, such as {"budget": 0.2, "scorer": "h2o"} or {"everything": true}.

        Raises:
          ValueError: not an object, a field that is unknown, or a value that is out of range.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"keep must be an object, not {reprlib.repr(fields)}")
        known = ("scorer", "budget", "everything")
        if unknown := sorted(fields.keys() - set(known)):
            raise ValueError(f"keep has the field {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**{name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Request:
    """One client's request.

    Attributes:
      client: who is charged for it; the unit of fairness.
      prompt_ids: token ids, at least one; kept as a tuple.
      sampling: how tokens are chosen and when to stop.
      id: unique among live requests; assigned by the engine if empty.
      cache_salt: requests share cached prefixes only with requests of the same salt.
      deadline_s: seconds after arrival at which it ends, finished or not.
      priority: among requests that a policy serves in order of arrival (a client's own; with `fcfs`, all),
        higher goes first. Files of requests, HTTP and language models say it the other way round, as vLLM
        does; their borders turn the sign.
      program: the task it is a call of, e.g. an agent's; with `unit="program"`, policies charge all calls
        of a program to one account, in place of the client's.
      grammar: makes the grammar of one output; None = any text.
      resume_ids: output tokens that an engine which is gone has produced already. The output goes on behind
        them as if this engine had made them: same positions, stops, penalties and grammar. Deltas have ids
        that are new, but the whole text so far; log-probabilities of earlier tokens are nan. Needs n = 1.
      keep: another budget or scorer than the engine's, where that evicts.
      forced_ids: tokens that the output begins with whatever the model would say, read by decode steps one by
        one. Each has its log-probability if `sampling` asks for those, and none ends the output. So a text is
        scored against keys that were cut before it. For engines that evict; with `prompt_logprobs` others
        score a text too.
    """

    client: ClientId
    prompt_ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    id: RequestId = ""
    cache_salt: str = ""
    deadline_s: float | None = None
    priority: int = 0
    program: str = ""
    grammar: Callable[[], TokenGrammar] | None = None
    resume_ids: Sequence[int] = ()
    keep: RequestKeep | None = None
    forced_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("client", "id", "cache_salt", "program"):
            if not isinstance(value := getattr(self, name), str) or not is_text(value):
                raise ValueError(f"request {self.id!a}: {name} is {value!a}; it must be text")
        try:
            # A copy: the prefix tree keeps prompts, so they must not change with the caller's list.
            ids = tuple(map(operator.index, self.prompt_ids))
        except TypeError as why:
            raise ValueError(f"request {self.id!r}: token ids must be whole numbers: {why}") from why
        object.__setattr__(self, "prompt_ids", ids)
        if not ids:
            raise ValueError(f"request {self.id!r} of client {self.client!r} has an empty prompt")
        if self.deadline_s is not None and not _real(self.deadline_s, 0, math.inf):
            raise ValueError(f"request {self.id!r} has a deadline of {self.deadline_s!r} s after its arrival")
        if not _whole(self.priority, -(2**20), 2**20):
            raise ValueError(f"request {self.id!r} has priority {self.priority}; at most 2**20 either way")
        object.__setattr__(self, "resume_ids", tuple(self.resume_ids))
        if self.resume_ids and not (self.sampling.n == 1 and len(self.resume_ids) < self.sampling.max_tokens):
            raise ValueError(
                f"request {self.id!r} resumes behind {len(self.resume_ids)} tokens of output; it may have "
                f"{self.sampling.max_tokens} and n={self.sampling.n}"
            )
        self._check_forced()

    def _check_forced(self) -> None:
        object.__setattr__(self, "forced_ids", tuple(self.forced_ids))
        if not self.forced_ids:
            return
        if len(self.forced_ids) > self.sampling.max_tokens:
            raise ValueError(
                f"request {self.id!r} begins with {len(self.forced_ids)} given tokens (forced_ids); it may "
                f"have {self.sampling.max_tokens}"
            )
        if self.grammar is not None or self.sampling.min_tokens:
            raise ValueError(
                f"request {self.id!r} has forced_ids, and a grammar or min_tokens="
                f"{self.sampling.min_tokens}; these forbid tokens, which have no log-probability then"
            )
        both = zip(self.forced_ids, self.resume_ids)
        if any(given != produced for given, produced in both):
            raise ValueError(f"request {self.id!r} resumes behind other tokens than its forced_ids")

    @property
    def names(self) -> list[RequestId]:
        """Names its outputs are scheduled under; the first is its id."""
        return [self.id, *(f"{self.id}#{i}" for i in range(1, self.sampling.n))]

    def seed_of(self, index: int, name: RequestId = "") -> int:
        """The seed of one of its outputs; output 0 has the request's own.

        Args:
          name: what the output is scheduled under, where the request has no id.
        """
        seed = self.sampling.seed
        if seed is None:
            seed = zlib.crc32((self.id or name).encode())
        return seed if index == 0 else zlib.crc32(f"{seed} {index}".encode())


class Logprob(NamedTuple):
    """One token's log-probability, and the likeliest tokens with theirs, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What a scheduling policy may know of a request: sizes and names, never tokens.

    Attributes:
      seq: arrival order, unique; the last tie-break everywhere. A priority moves it forward.
      prompt_tok: prompt length, in tokens.
      max_output_tok: the most tokens it may produce.
      predicted_tok: a prediction of its output length, if there is one.
      program: see `Request`; "" for none.
    """

    id: RequestId
    client: ClientId
    seq: int
    prompt_tok: int
    max_output_tok: int
    predicted_tok: int | None = None
    program: str = ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A finished output.

    Attributes:
      index: which of its `n` outputs.
      text: its text, where the engine can decode; without the text that ended it.
      stop: the id or the text that ended it, if one did.
      logprobs, prompt_logprobs: if requested; the prompt's begin with its second token.
      hit_tok: prompt tokens found in the cache when it first ran.
      admit_s, first_token_s: -1 if that never happened.
    """

    id: RequestId
    client: ClientId
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


@dataclass(slots=True)  # not frozen: that triples the time to make one, and each row makes one per step
class Delta:
    """What one engine step added to a request.

    Attributes:
      ids: tokens new since the last delta.
      output: the whole result, on the last delta only.
      index: which of its `n` outputs.
      text: new text; may lag behind the ids, never contains part of a stop text or of a character.
      logprobs: of `ids`, if requested.
    """

    id: RequestId
    client: ClientId
    ids: list[int]
    output: Output | None = None
    index: int = 0
    text: str = ""
    logprobs: Sequence[Logprob] = ()
