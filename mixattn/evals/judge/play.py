"""Runs many calls at once and keeps what is finished: retries, a budget, and a log to continue from.

A call that fails for good ends the run: no new work begins, what is under way is finished and kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mixattn.evals.judge.judging import used
from mixattn.evals.judge.lines import LineLog
from mixattn.evals.llm import CallFailed, RetryPolicy, call_with_retries

REFUSALS = 3  # so many refused calls, and none answered, end a run: the fault is not in a single prompt


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars per million tokens, and the most that a run may cost (0: no limit)."""

    input_usd_per_mtok: float = 0.0
    output_usd_per_mtok: float = 0.0
    max_usd: float = 0.0

    def check(self) -> None:
        for name in ("input_usd_per_mtok", "output_usd_per_mtok", "max_usd"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must not be negative")
        if self.max_usd and not (self.input_usd_per_mtok or self.output_usd_per_mtok):
            raise ValueError(
                f"--max_usd={self.max_usd} needs prices; give --input_usd_per_mtok and --output_usd_per_mtok"
            )

    def usd(self, prompt_tok: int, output_tok: int) -> float:
        return (prompt_tok * self.input_usd_per_mtok + output_tok * self.output_usd_per_mtok) / 1e6


class RunStopped(RuntimeError):
    """No new work begins; the message says why."""


@dataclass
class Caller:
    """Makes calls with retries and adds up what they used."""

    policy: RetryPolicy
    prices: Prices = field(default_factory=Prices)
    calls: int = 0
    retries: int = 0
    prompt_tok: int = 0
    output_tok: int = 0

    @property
    def usd(self) -> float:
        return self.prices.usd(self.prompt_tok, self.output_tok)

    async def __call__(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """The result of a call.

        Raises:
          CallFailed: it failed for good.
        """
        self.calls += 1
        result, retries = await call_with_retries(attempt, self.policy)
        usage = used(result)
        self.retries += retries
        self.prompt_tok += usage.prompt_tok
        self.output_tok += usage.output_tok
        return result

    def check_budget(self) -> None:
        """Called before each piece of work, so that work under way is finished.

        Raises:
          RunStopped: the budget is spent.
        """
        if self.prices.max_usd and self.usd >= self.prices.max_usd:
            raise RunStopped(f"the budget of {self.prices.max_usd} USD is spent ({self.usd:.4f} USD)")

    def figures(self) -> dict[str, Any]:
        """What the calls used, for `--json`."""
        return {
            "calls": self.calls,
            "retries": self.retries,
            "prompt_tok": self.prompt_tok,
            "output_tok": self.output_tok,
            "usd": round(self.usd, 6),
        }


@dataclass
class Outcome:
    """How a run ended: lines written, work that the model refused, and why it stopped early, if it did."""

    written: int = 0
    refused: list[str] = field(default_factory=list)
    stopped: str = ""

    @property
    def complaint(self) -> str:
        """One sentence if not everything was done, else nothing."""
        if self.stopped:
            return self.stopped
        if self.refused:
            return f"{len(self.refused)} were refused and left out; the first: {self.refused[0]}"
        return ""


async def play[W](
    work: Iterable[W],
    do: Callable[[W], Awaitable[dict[str, Any]]],
    name: Callable[[W], str],
    log: LineLog,
    *,
    parallel: int,
    on_line: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Outcome:
    """Does all of `work`, `parallel` at a time, and appends each result to `log` as it comes.

    Args:
      do: makes one line of the log.
      name: says in a few words which work it is, for errors.
    """
    outcome, waiting = Outcome(), iter(work)
    workers = [_worker(waiting, do, name, log, outcome, on_line) for _ in range(max(1, parallel))]
    await asyncio.gather(*workers)
    return outcome


async def _worker[W](
    waiting: Iterator[W],
    do: Callable[[W], Awaitable[dict[str, Any]]],
    name: Callable[[W], str],
    log: LineLog,
    outcome: Outcome,
    on_line: Callable[[dict[str, Any]], None],
) -> None:
    for each in waiting:  # the workers share one iterator
        try:
            line = await do(each)
        except RunStopped as why:
            outcome.stopped = outcome.stopped or str(why)
        except CallFailed as why:
            _note(outcome, f"{name(each)}: {why}", why.transient)
        else:
            log.append(line)
            outcome.written += 1
            on_line(line)
        if outcome.stopped:
            return


def _note(outcome: Outcome, what: str, transient: bool) -> None:
    """A model that stays away ends the run; one refused prompt does not, unless nothing else is answered."""
    if not transient:
        outcome.refused.append(what)
    if transient or (not outcome.written and len(outcome.refused) >= REFUSALS):
        outcome.stopped = outcome.stopped or what
