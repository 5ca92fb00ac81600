"""Runs the grid: which questions are still open, in batches of one task, length and policy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mixattn.evals.longcontext.example import Count, Example, score
from mixattn.evals.longcontext.journal import KEY, Answer, AnswerLog
from mixattn.evals.longcontext.policies import KeepPolicy
from mixattn.evals.longcontext.tasks import AT_A_DEPTH, TASKS

type Mode = Literal["aware", "agnostic"]
type OnBatch = Callable[[int, str], None]  # answers that came, and what is asked
TEXT, STREAM = "text", "stream"
NATS_TASKS = (TEXT, STREAM)


class LongContextModel(Protocol):
    """What the suite asks of a model."""

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def answers(self, examples: Sequence[Example], policy: KeepPolicy, mode: Mode) -> list[str]:
        """Greedy answers; in mode "agnostic" the cache is cut before the question is read."""
        ...

    def nats(
        self, task: str, length: int, indices: Sequence[int], policies: Sequence[KeepPolicy]
    ) -> list[list[float]]:
        """Mean negative log-likelihood of the last tokens of each text of `length` tokens, by policy."""
        ...


@dataclass(frozen=True)
class SuiteGrid:
    """What to ask.

    Attributes:
      tasks: names of `TASKS`, and "text" and "stream". lengths: tokens of context and question.
      depths: of tasks with one place of the answer. samples: questions for each cell.
      batch: questions at a time. mode: see `LongContextModel.answers`. seed: of the questions.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    policies: tuple[KeepPolicy, ...]
    samples: int
    mode: Mode = "aware"
    batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*TASKS, *NATS_TASKS)
        for task in self.tasks:
            if task not in known:
                raise ValueError(f"task {task!r} is not one of {', '.join(known)}")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise ValueError(
                    f"depth {depth} is not in [0, 1]: 0 is the beginning of the context, 1 its end"
                )
        for name, least in (("samples", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {least} is needed")

    def places(self, task: str) -> list[tuple[float, int]]:
        """(depth, sample) of the questions of a task at one length; depth -1 where it means nothing."""
        depths = self.depths if task in AT_A_DEPTH else (-1.0,)
        return [(depth, index) for index in range(self.samples) for depth in depths]

    @property
    def size(self) -> int:
        """Answers in the whole grid."""
        return len(self.lengths) * len(self.policies) * sum(len(self.places(task)) for task in self.tasks)


def run(grid: SuiteGrid, model: LongContextModel, log: AnswerLog, on_batch: OnBatch) -> None:
    """Asks what the log does not have yet; calls `on_batch` with the answers that came, and what is asked."""
    for length in grid.lengths:
        for task in grid.tasks:
            ask = _ask_nats if task in NATS_TASKS else _ask_questions
            ask(grid, model, log, on_batch, task, length)


def _ask_questions(
    grid: SuiteGrid, model: LongContextModel, log: AnswerLog, on_batch: OnBatch, task: str, length: int
) -> None:
    examples = _Examples(grid, task, length, model.count)
    for policy in grid.policies:
        todo = _open(grid, log, task, length, policy)
        doing = f"{task}, {length} tokens, {policy.name}"
        on_batch(len(grid.places(task)) - len(todo), doing)
        for start in range(0, len(todo), grid.batch):
            places = todo[start : start + grid.batch]
            log.add(_answered(grid, model, examples, places, policy))
            on_batch(len(places), doing)


def _ask_nats(
    grid: SuiteGrid, model: LongContextModel, log: AnswerLog, on_batch: OnBatch, task: str, length: int
) -> None:
    """A batch of texts goes through all policies before the next, so that a run cut short has whole pairs."""
    places = grid.places(task)
    for start in range(0, len(places), grid.batch):
        batch = places[start : start + grid.batch]
        missing = {p: [at for at in batch if at in _open(grid, log, task, length, p)] for p in grid.policies}
        on_batch(len(batch) * len(missing) - sum(map(len, missing.values())), f"{task}, {length} tokens")
        for todo in {tuple(at) for at in missing.values() if at}:
            policies = [policy for policy in grid.policies if tuple(missing[policy]) == todo]
            nats = model.nats(task, length, [index for _, index in todo], policies)
            for policy, scores in zip(policies, nats, strict=True):
                heads = [_head(grid, task, length, at, policy) for at in todo]
                log.add(head | {"score": score} for head, score in zip(heads, scores, strict=True))
            on_batch(len(todo) * len(policies), f"{task}, {length} tokens")


def _open(
    grid: SuiteGrid, log: AnswerLog, task: str, length: int, policy: KeepPolicy
) -> list[tuple[float, int]]:
    """The places that the log has no answer for."""
    return [at for at in grid.places(task) if _key(grid, task, length, at, policy) not in log.answers]


class _Examples:
    """The questions of one task and length, each made once for all policies."""

    def __init__(self, grid: SuiteGrid, task: str, length: int, count: Count):
        self.task, self.length = task, length
        self._seed, self._count, self._made = grid.seed, count, dict[tuple[float, int], Example]()

    def at(self, depth: float, index: int) -> Example:
        if (depth, index) not in self._made:
            make = TASKS[self.task]
            self._made[depth, index] = make(self._seed, index, self.length, depth, self._count)
        return self._made[depth, index]


def _answered(
    grid: SuiteGrid,
    model: LongContextModel,
    questions: _Examples,
    places: Sequence[tuple[float, int]],
    policy: KeepPolicy,
) -> list[Answer]:
    task, length = questions.task, questions.length
    heads = [_head(grid, task, length, place, policy) for place in places]
    examples = [questions.at(*place) for place in places]
    said = model.answers(examples, policy, grid.mode)
    return [
        head | {"expected": list(example.answers), "answer": answer, "score": score(example, answer)}
        for head, example, answer in zip(heads, examples, said, strict=True)
    ]


def _head(grid: SuiteGrid, task: str, length: int, place: tuple[float, int], policy: KeepPolicy) -> Answer:
    return dict(zip(KEY, _key(grid, task, length, place, policy), strict=True))


def _key(
    grid: SuiteGrid, task: str, length: int, place: tuple[float, int], policy: KeepPolicy
) -> tuple[Any, ...]:
    """The values of `journal.KEY`."""
    return task, length, *place, policy.name, grid.mode
