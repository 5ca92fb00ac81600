"""Reads the log-probability of a continuation out of a server's echo of prompt and continuation."""

import math
from itertools import accumulate
from typing import Any

from mixattn.evals.llm.protocol import CallFailed, Likelihood


def of_echo(response: dict[str, Any], prompt: str, continuation: str) -> Likelihood:
    """Sums over the echoed tokens that hold a character of `continuation`.

    A token that straddles the border between prompt and continuation counts: it is the model's first step
    into the continuation. Tokens generated after it do not.

    Raises:
      CallFailed: the server did not echo, or did not return one log-probability for each such token.
    """
    try:
        logprobs = response["choices"][0]["logprobs"]
        tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
        starts = logprobs.get("text_offset") or _starts(tokens)
    except (KeyError, IndexError, TypeError, AttributeError) as why:
        raise CallFailed("the server does not tell log-probabilities of a prompt", transient=False) from why
    if not len(tokens) == len(values) == len(starts):
        counts = f"{len(tokens)} tokens, {len(values)} log-probabilities and {len(starts)} offsets"
        raise CallFailed(f"the server echoes {counts}", transient=False)
    first, end = len(prompt), len(prompt) + len(continuation)
    ends = [*starts[1:], starts[-1] + len(tokens[-1])] if starts else []
    found = [value for value, start, stop in zip(values, starts, ends) if start < end and stop > first]
    if not found or any(value is None or not math.isfinite(value) for value in found):
        raise CallFailed("the server's echo does not reach the continuation", transient=False)
    return Likelihood(math.fsum(found), len(found))


def _starts(tokens: list[str]) -> list[int]:
    return list(accumulate((len(token) for token in tokens[:-1]), initial=0))
