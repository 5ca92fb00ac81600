"""Retries and deadlines for model calls.

A retry repeats the same call with the same seed, so it does not change the answer a caller gets.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mixattn.evals.llm.protocol import CallFailed

MAX_PAUSE_S = 60.0


@dataclass(unsafe_hash=True, kw_only=True)
class RetryPolicy:
    """Deadline and retries of a model call.

    Attributes:
      timeout_s: of one attempt; 0 means no deadline.
      max_retries: attempts after the first.
      backoff_s: pause before the first retry; it doubles with each retry, up to a minute. A server that asks
        for a longer pause gets it, up to a minute.
      jitter: each pause is longer by a random part, at most this fraction, so that callers do not return in
        step.
    """

    timeout_s: float = 0.0
    max_retries: int = 3
    backoff_s: float = 0.5
    jitter: float = 0.0

    def check(self) -> None:
        for name in ("timeout_s", "max_retries", "backoff_s", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"retry_policy.{name} is {getattr(self, name)}; it must not be negative")

    def pause_s(self, retry: int, asked_s: float | None = None) -> float:
        """The pause before retry number `retry`, which counts from 0."""
        pause_s = max(self.backoff_s * 2**retry, asked_s or 0.0) * (1 + self.jitter * random.random())
        return min(pause_s, MAX_PAUSE_S)


async def call_with_retries[T](attempt: Callable[[], Awaitable[T]], policy: RetryPolicy) -> tuple[T, int]:
    """Returns the result and the number of retries it took.

    Raises:
      CallFailed: the last failure, or the first one that is not transient. Its `transient` says which.
    """
    for retry in range(policy.max_retries + 1):
        try:
            if not policy.timeout_s:
                return await attempt(), retry
            async with asyncio.timeout(policy.timeout_s):
                return await attempt(), retry
        except TimeoutError:
            error = CallFailed(f"no answer within {policy.timeout_s} s", transient=True)
        except CallFailed as failure:
            error = failure
        if not error.transient or retry == policy.max_retries:
            tries = f"attempt {retry + 1} of {policy.max_retries + 1}"
            raise CallFailed(f"{error} ({tries})", transient=error.transient)
        await asyncio.sleep(policy.pause_s(retry, error.retry_after_s))
    raise AssertionError("unreachable")
