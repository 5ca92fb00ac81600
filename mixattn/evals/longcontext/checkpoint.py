"""A checkpoint as a model of the suite: batches through `mixattn.generate` and its caches."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from mixattn import hf
from mixattn.evals.longcontext.example import Example
from mixattn.evals.longcontext.policies import KeepPolicy
from mixattn.evals.longcontext.suite import STREAM, Mode
from mixattn.forced import log_likelihoods
from mixattn.forced_together import applies, log_likelihoods_together
from mixattn.generation import generate
from mixattn.keep import Keep
from mixattn.text import reference_manual

SCORED_SHARE = 4  # a quarter of a text is scored
STREAM_START = 16  # tokens read at once before a stream


class CheckpointModel:
    """A model, its tokenizer, and a text of English prose: the language reference that Python carries.

    Args:
      path: a checkpoint directory.
      scored: tokens of a text that are scored; 0 = a quarter of it.

    Raises:
      ValueError: it is none.
    """

    def __init__(self, path: Path, scored: int = 0):
        self.scored = scored
        self.model, self.config = hf.load(path)
        self.tokenizer = hf.load_tokenizer(path)
        self.stop_ids = tuple(hf.stop_ids(path))

    def check(self, longest: int, new_tokens: int) -> None:
        """Raises ValueError if the model's context is shorter than a task."""
        room = self.config.max_positions
        if longest + new_tokens > room:
            raise ValueError(
                f"a length of {longest} tokens with an answer of {new_tokens} does not fit the model's "
                f"context of {room} tokens; give shorter --lengths"
            )

    def count(self, text: str) -> int:
        return len(self.ids(text))

    def answers(self, examples: Sequence[Example], policy: KeepPolicy, mode: Mode) -> list[str]:
        contexts = [self.ids(example.context) for example in examples]
        tails = [self.ids(example.question + example.lead, first=False) for example in examples]
        new_tokens = max(example.new_tokens for example in examples)
        unseen = mode == "agnostic"
        rows = generate(
            self.model,
            contexts if unseen else [c + t for c, t in zip(contexts, tails, strict=True)],
            new_tokens,
            stop_ids=self.stop_ids,
            keep=keep_of(policy),
            then=tails if unseen else None,
        )
        return [self.tokenizer.decode(row) for row in rows]

    def nats(
        self, task: str, length: int, indices: Sequence[int], policies: Sequence[KeepPolicy]
    ) -> list[list[float]]:
        rows = [self.text(length, index) for index in indices]
        keeps, scored = (
            [keep_of(policy) for policy in policies],
            self.scored or max(1, length // SCORED_SHARE),
        )
        start = length - scored
        if task == STREAM:
            start = min(STREAM_START, start)
            keeps = [
                keep and dataclasses.replace(keep, positions="rolling", share_of="total") for keep in keeps
            ]
        together = len(keeps) > 1 and all(applies(self.config, keep) for keep in keeps)
        if together and task != STREAM:
            found = log_likelihoods_together(self.model, rows, start, keeps)
        else:
            found = [log_likelihoods(self.model, rows, start, keep=keep) for keep in keeps]
        return [[float(-row[-scored:].mean()) for row in nats] for nats in found]

    def text(self, length: int, index: int) -> list[int]:
        """The `index`-th stretch of `length` tokens of the reference, without overlap as far as it goes."""
        ids = self._reference
        if length > len(ids):
            raise ValueError(f"a text of {length} tokens was asked for; the reference has {len(ids)}")
        start = index * length % (len(ids) - length + 1)
        return ids[start : start + length]

    @functools.cached_property
    def _reference(self) -> list[int]:
        return self.ids(reference_manual())

    def ids(self, text: str, *, first: bool = True) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=first).ids)


def keep_of(policy: KeepPolicy) -> Keep | None:
    """The `Keep` of a policy; None for the full cache.

    Raises:
      ValueError: what `Keep` refuses.
    """
    return None if policy.fields is None else Keep(**policy.fields)
