"""Answers by job: asked once, kept in memory and on disk, under all budgets while the context is at hand."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixattn.evals.judge.lines import LineLog, read_rows
from mixattn.evals.longcontext.policies import KeepPolicy
from serving.evals.harness.jobs import Job, Score, fingerprint


class JobRunner(Protocol):
    """What answers jobs, as `KeepEngine` does."""

    def run(self, jobs: Sequence[Job], on_answer: Callable[[int, Any], None]) -> None: ...


class AnswerBook:
    """Answers of one model.

    A job that is asked is answered under every policy, one after the other: its context is computed once,
    and a harness that comes back with the next policy finds its answers here. A killed run goes on where it
    was.

    Args:
      policies: those that jobs may name.
      path: file of answers, one JSON line each; None = in memory only.
      on_answers: called with the number of answers known and wanted.
    """

    def __init__(
        self,
        runner: JobRunner,
        policies: Sequence[KeepPolicy],
        path: Path | None = None,
        on_answers: Callable[[int, int], None] = lambda known, wanted: None,
    ):
        self._runner, self._policies, self._path, self._tell = runner, policies, path, on_answers
        self._known: dict[str, Any] = {}
        if path is not None:
            rows = read_rows(path, torn_end=True)
            self._known = {row["job"]: row["answer"] for row in rows}

    def answers(self, jobs: Sequence[Job]) -> list[Any]:
        """A `Score` or a text for each job."""
        wanted = {
            fingerprint(each): each
            for job in jobs
            for policy in self._policies
            for each in (dataclasses.replace(job, policy=policy),)
        }
        todo = {name: job for name, job in wanted.items() if name not in self._known}
        if todo:
            self._ask(todo, len(wanted))
        return [_value(self._known[fingerprint(job)]) for job in jobs]

    def _ask(self, todo: dict[str, Job], wanted: int) -> None:
        names = list(todo)
        log = LineLog(self._path) if self._path is not None else None
        try:

            def keep(place: int, answer: Any) -> None:
                self._known[names[place]] = answer
                if log is not None:
                    log.append({"job": names[place], "answer": answer})
                self._tell(wanted - sum(name not in self._known for name in names), wanted)

            self._runner.run(list(todo.values()), keep)
        finally:
            if log is not None:
                log.close()


def _value(answer: Any) -> Any:
    """JSON made a list of a score."""
    return Score(float(answer[0]), bool(answer[1])) if isinstance(answer, list | tuple) else answer
