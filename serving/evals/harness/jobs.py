"""What the harness asks of an engine, in token ids: how likely a text is, and how a text goes on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from mixattn.evals.longcontext.policies import KeepPolicy


@dataclass(frozen=True)
class ScoreJob:
    """How likely `continuation` is behind `context`.

    Attributes:
      policy: which keys are kept.
      context, continuation: token ids, at least one each.
      rolling: a window of a whole text: its budget is a share of context and continuation.
    """

    policy: KeepPolicy
    context: tuple[int, ...]
    continuation: tuple[int, ...]
    rolling: bool = False

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError(
                f"a score needs a context and a continuation; they have {len(self.context)} and "
                f"{len(self.continuation)} tokens"
            )


@dataclass(frozen=True)
class WriteJob:
    """How `context` goes on.

    Attributes:
      policy: which keys are kept.
      context: token ids, at least one. max_tokens: of the answer.
      until: texts that end it; they are not part of it.
      temperature, top_p, top_k, seed: see `serving.request.Sampling`.
    """

    policy: KeepPolicy
    context: tuple[int, ...]
    max_tokens: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.context or self.max_tokens < 1:
            raise ValueError(
                f"an answer needs a context and room; these are {len(self.context)} and {self.max_tokens} "
                "tokens"
            )

    def cut(self, text: str) -> str:
        """The text in front of the first of `until` in it."""
        return text[: min((at for stop in self.until if (at := text.find(stop)) >= 0), default=len(text))]


type Job = ScoreJob | WriteJob


class Score(NamedTuple):
    """Log-likelihood of a continuation in nats, and whether greedy decoding says it."""

    nats: float
    greedy: bool


def fingerprint(job: Job) -> str:
    """Equal for equal jobs, from run to run."""
    told = json.dumps([type(job).__name__, asdict(job)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def windows(
    ids: Sequence[int], prefix_id: int, most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A long text in pieces (context, continuation) that predict each token once.

    The first piece begins behind `prefix_id`, each further one behind the token before it; the last has as
    much context as fits, so that none of its tokens is predicted from little.

    Args:
      most: tokens that a piece can predict, at least 1; it has at most one more.
    """
    for start in range(0, len(ids), most):
        end = min(start + most, len(ids))
        before = [prefix_id] if start == 0 else ids[min(start, end - most) - 1 : start]
        yield tuple(before), tuple(ids[start:end])
