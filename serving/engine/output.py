"""The output side of a live request: applies stop conditions to its tokens and collects deltas."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from serving.engine.detokenizer import Decode, IncrementalDetokenizer
from serving.engine.plan import StepResult
from serving.request import Delta, FinishReason, Logprob, Output, Request


class OutputStream:
    """One output of one request.

    Args:
      index: which of the request's outputs.
      stops: ids that end it.
      decode: ids -> text; None for no text.
    """

    def __init__(self, request: Request, id: str, index: int, stops: Sequence[int], decode: Decode | None):
        self.sampling = sampling = request.sampling
        self.request, self.id, self.index, self.stops = request, id, index, frozenset(stops)
        self.text = decode and IncrementalDetokenizer(
            decode, sampling.stop, include_stop=sampling.include_stop, prompt=request.prompt_ids
        )
        self.grammar = request.grammar() if request.grammar is not None else None
        self.logprobs: list[Logprob] = []
        self.prompt_logprobs: dict[int, Logprob] = {}
        self._stop: int | str | None = None
        self._taken = self._sent = 0
        self._all_text = ""
        self._failed = False  # its text could not be made
        if request.resume_ids:
            self._resume(request.resume_ids)

    @property
    def seed(self) -> int:
        """This output's seed."""
        return self.request.seed_of(self.index, self.id)

    def _resume(self, ids: Sequence[int]) -> None:
        """Takes tokens that were produced elsewhere, none of which ended the output."""
        for id in ids:
            if self.text is not None:
                self._guarded(self.text.push, id, may_stop=False)
            if self.grammar is not None:
                self.grammar.accept(id)
        self._taken = self._sent = len(ids)
        if self.sampling.logprobs is not None:
            self.logprobs = [Logprob(id, math.nan) for id in ids]

    def take(self, ids: Sequence[int], broken: bool, logprobs: Sequence[Logprob] = ()) -> StepResult:
        """Takes a step's tokens: how many of `ids` count, and whether they end the request.

        Args:
          broken: the logits after `ids` were not finite.
        """
        ended: FinishReason | None = None
        # `n` from which on it may end: the last of its least tokens, or the first that was not given.
        min_tok = max(self.sampling.min_tokens, len(self.request.forced_ids) + 1)
        text, tokens_to_min = self.text, min_tok - self._taken
        for n, id in enumerate(ids, 1):
            if id in self.stops and n >= tokens_to_min:
                self._stop = id
            elif text is not None and self._guarded(text.push, id, may_stop=n >= tokens_to_min):
                self._stop = text.stopped_by
            elif self.grammar is not None:
                ended = self.grammar.accept(id)
            if self._failed:
                return StepResult(n, ids[:n], "error")
            if self._stop is not None or ended is not None:
                self.logprobs += logprobs[:n]
                return StepResult(n, ids[:n], ended or "stop")
        self._taken += len(ids)
        self.logprobs += logprobs
        return StepResult(len(ids), ids, "error" if broken or self._failed else None)

    def delta(self, output_ids: Sequence[int], output: Output | None = None) -> Delta | None:
        """What is new since the last delta, or None; with `output` the last delta of all."""
        new = list(output_ids[self._sent :])
        logprobs = tuple(self.logprobs[self._sent : len(output_ids)])
        self._sent = len(output_ids)
        if self.text and output is not None:
            self._guarded(self.text.close)
        text = (self.text and self._guarded(self.text.pull)) or ""
        self._all_text += text
        if not new and output is None:
            return None
        if output is not None:
            output = self._whole(output)
        return Delta(self.request.id, self.request.client, new, output, self.index, text, logprobs)

    def _whole(self, output: Output) -> Output:
        prompt = [lp for _, lp in sorted(self.prompt_logprobs.items())]
        return dataclasses.replace(
            output,
            id=self.request.id,
            index=self.index,
            text=self._all_text,
            finish_reason="error" if self._failed else output.finish_reason,
            stop=self._stop if output.finish_reason == "stop" else None,
            logprobs=tuple(self.logprobs[: len(output.output_ids)]),
            prompt_logprobs=prompt,
        )

    def _guarded(self, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A decoder that fails ends this output alone."""
        try:
            return None if self._failed else make(*args, **options)
        except Exception as why:
            logging.error("the text of request %r cannot be made, it ends: %r", self.id, why)
            self._failed = True
            return None
