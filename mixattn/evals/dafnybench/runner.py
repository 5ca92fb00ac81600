"""Asks a model for hints, attempt by attempt; every attempt is kept: a run can be killed and resumed.

`attempts.jsonl` has a line per attempt; a torn last line is dropped. Attempt 0 is the program without hints.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mixattn.evals.dafny.protocol import Verify
from mixattn.evals.dafnybench.checking import Mode, Task, check
from mixattn.evals.dafnybench.models import Attempt, Model, program_in
from mixattn.tools import files

MAX_REPLY_CHARS = 1 << 20


@dataclass(slots=True)
class Journal:
    """The attempts of a run, in memory and on disk.

    Args:
      settings: what the run was started with; a resumed run must have the same.

    Raises:
      ValueError: the folder holds a run with other settings.
    """

    folder: Path
    settings: dict[str, Any]
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "run.json"
        if about.exists():
            known = files.read_json(about)
            if known != self.settings:
                names = self.settings | known
                name = next(k for k in names if known.get(k) != self.settings.get(k))
                raise ValueError(
                    f"{self.folder} holds a run with {name}={known.get(name)}, not {self.settings.get(name)};"
                    " name another --workdir"
                )
        else:
            files.write_json(about, self.settings)
        self.attempts = load_attempts(self.folder)
        self._mend()

    def _mend(self) -> None:
        """Writes what was understood back, so that new lines do not follow a torn one."""
        lines = [_line(name, a) for name, attempts in self.attempts.items() for a in attempts]
        files.write_text(self.folder / "attempts.jsonl", "".join(lines))

    def add(self, name: str, attempt: Attempt) -> None:
        """Appends one attempt; it is on disk when this returns."""
        with self._lock:
            with (self.folder / "attempts.jsonl").open("a", encoding="utf-8") as out:
                out.write(_line(name, attempt))
            self.attempts.setdefault(name, []).append(attempt)


def _line(name: str, attempt: Attempt) -> str:
    return json.dumps({"task": name, **asdict(attempt)}) + "\n"


def load_attempts(folder: Path) -> dict[str, list[Attempt]]:
    """Task -> attempts in order. A line that is not whole ends the reading."""
    found: dict[str, list[Attempt]] = {}
    path = folder / "attempts.jsonl"
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
            found.setdefault(fields.pop("task"), []).append(Attempt(**fields))
        except (ValueError, TypeError, KeyError, AttributeError):
            break
    return found


@dataclass(slots=True)
class Budget:
    """How often the model may be asked, over all tasks, and until when; 0: without limit."""

    calls: int = 0
    seconds: float = 0.0
    used: int = 0
    _start_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Whether one more call is allowed; it then counts."""
        with self._lock:
            if self.over():
                return False
            self.used += 1
            return True

    def over(self) -> bool:
        """Whether no further call is allowed."""
        spent = bool(self.calls) and self.used >= self.calls
        return spent or (bool(self.seconds) and time.monotonic() - self._start_s >= self.seconds)


def run(
    tasks: list[Task],
    model: Model,
    verify: Verify,
    journal: Journal,
    *,
    attempts: int = 10,
    parallel: int = 1,
    mode: Mode = "strict",
    budget: Budget | None = None,
) -> Iterator[str]:
    """Yields the names of tasks as they end: accepted, or out of attempts or budget.

    Raises:
      VerifierGone: the attempts made before are kept.
    """
    budget = budget or Budget()

    def work(task: Task) -> str:
        if task.name not in journal.attempts and budget.over():
            return task.name  # not begun, so that no rate counts it as failed
        solve(task, model, verify, journal, attempts, mode, budget.take)
        return task.name

    with ThreadPoolExecutor(parallel) as threads:
        futures = [threads.submit(work, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def solve(
    task: Task,
    model: Model,
    verify: Verify,
    journal: Journal,
    attempts: int,
    mode: Mode,
    may_ask: Callable[[], bool],
) -> None:
    """Continues one task from its last attempt until it is accepted or there are `attempts`."""
    past = list(journal.attempts.get(task.name, []))
    while not (past and past[-1].accepted) and len(past) <= attempts:
        if not past:
            reply = task.stripped
        elif may_ask():
            reply = model(task, past[1:])[:MAX_REPLY_CHARS]
        else:
            return
        attempt = judge(task, reply, verify, mode)
        journal.add(task.name, attempt)
        past.append(attempt)


def judge(task: Task, reply: str, verify: Verify, mode: Mode) -> Attempt:
    """The attempt that a reply is, by `mode`; the public check's opinion is kept beside it."""
    solution = program_in(reply)
    answer = check(task, solution, verify, mode)
    public = answer if mode == "official" else check(task, solution, verify, "official")
    feedback = "" if answer.accepted else answer.feedback or "The solution was not accepted."
    return Attempt(reply, solution, answer.accepted, public.accepted, answer.verdict, feedback)
