"""What the sides of `python -m serving.bench --only=real` have in common: one JSON line each way.

    {"load": {...}}                               -> {"versions": ...}
    {"prompts": [ids, ...], "new": 64}            -> {"times": [[s, ...], ...], "outputs": [[id, ...], ...]}

`times` are seconds from the submission of all prompts at once to each token of each request. Decoding is
greedy and ends after `new` tokens, whatever they are. Standard library only: each side runs in an environment
of its own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]
# From here on what libraries print goes to standard error.
_ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


class TokenTimes:
    """Notes when each token of each request came."""

    def __init__(self, requests: int) -> None:
        self._began = time.perf_counter()
        self.times: list[list[float]] = [[] for _ in range(requests)]
        self.outputs: list[list[int]] = [[] for _ in range(requests)]

    def add(self, row: int, tokens: list[int]) -> None:
        now = time.perf_counter() - self._began
        self.outputs[row] += tokens
        self.times[row] += [now] * len(tokens)

    def answer(self) -> Answer:
        return {"times": self.times, "outputs": self.outputs}


def serve(load: Callable[[dict[str, Any]], Any], run: Callable[[Any, list[list[int]], int], Answer]) -> None:
    """Answers queries until standard input ends."""
    model = None
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            if "load" in ask:
                model, versions = load(ask["load"])
                answer: Answer = {"versions": versions}
            else:
                answer = run(model, ask["prompts"], ask["new"])
        except Exception as why:  # told in the other side's table
            answer = {"error": f"{type(why).__name__}: {why}"[:500]}
        print(json.dumps(answer), file=_ANSWERS, flush=True)
