"""A benchmark's folder in FastChat's layout (Zheng et al. 2023, github.com/lm-sys/FastChat).

BENCH/question.jsonl                   {"question_id", "category", "turns": [text, text]}
BENCH/model_answer/MODEL.jsonl         {"question_id", "model_id", "choices": [{"index", "turns"}], ...}
BENCH/reference_answer/JUDGE.jsonl     the same, by the judge
BENCH/model_judgment/JUDGE_single.jsonl and JUDGE_pair.jsonl
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixattn.evals.judge.lines import Row, read_existing_rows, read_rows

type QuestionId = int | str
type Turns = tuple[str, ...]  # the answers of one model to one question, one a turn

GRADED = ("math", "reasoning", "coding", "arena-hard-200")  # categories judged against a reference


@dataclass(frozen=True)
class Question:
    """One question of one or more turns.

    Attributes:
      reference: reference answers that came with the question; empty if none did.
      temperature: the sampling temperature it demands, if it demands one.
    """

    id: QuestionId
    category: str
    turns: Turns
    reference: Turns = ()
    temperature: float | None = None

    @property
    def graded(self) -> bool:
        """Whether its answers are judged against a reference."""
        return self.category in GRADED


def file_stem(name: str) -> str:
    """The file name of a model or judge: its name, with `--` for `/`, so that it stays inside the folder.

    Raises:
      ValueError: the name is empty, starts with a dot or holds a control character.
    """
    if not name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{name!r} cannot name a file; it must be printable and not start with a dot")
    return name.replace("/", "--").replace("\\", "--")


@dataclass(frozen=True)
class Bench:
    """A folder of questions, answers, references and judgments."""

    root: Path

    def answer_path(self, model: str) -> Path:
        return self.root / "model_answer" / f"{file_stem(model)}.jsonl"

    def judgment_path(self, judge: str, kind: str) -> Path:
        """`kind` is "single" or "pair"."""
        return self.root / "model_judgment" / f"{file_stem(judge)}_{kind}.jsonl"

    def questions(self) -> list[Question]:
        """The questions in the order of their file.

        Raises:
          ValueError: the file is missing, or a row is wrong or doubled.
        """
        path = self.root / "question.jsonl"
        if not path.is_file():
            example = f"python -m mixattn.evals judge questions --bench={self.root}"
            raise ValueError(f"{path} does not exist; write our 80 questions there with: {example}")
        questions: dict[QuestionId, Question] = {}
        for number, row in enumerate(read_existing_rows(path), 1):
            question = _question(f"{path}, row {number}", row)
            if question.id in questions:
                raise ValueError(f"{path}, row {number}: question_id {question.id} is there twice")
            questions[question.id] = question
        return list(questions.values())

    def models(self) -> list[str]:
        """Models with an answer file, sorted.

        Raises:
          ValueError: there is none.
        """
        found = sorted(path.stem for path in (self.root / "model_answer").glob("*.jsonl"))
        if not found:
            example = f"python -m mixattn.evals judge answer --bench={self.root} --model=NAME --url=URL"
            raise ValueError(f"{self.root / 'model_answer'} holds no answers; make some with: {example}")
        return found

    def answers(self, model: str, questions: Sequence[Question]) -> dict[QuestionId, Turns]:
        """One model's answers to all of `questions`; of several for one question the last counts.

        Raises:
          ValueError: the file is missing, a row is wrong, or answers are missing.
        """
        path = self.answer_path(model)
        if not path.is_file():
            raise ValueError(f"{path} does not exist; the models with answers are {', '.join(self.models())}")
        found = _turns_of(path)
        for question in questions:
            if len(found.get(question.id, ())) < len(question.turns):
                have = f"{len(found.get(question.id, ()))} of {len(question.turns)} turns"
                raise ValueError(f"{path} answers {have} of question {question.id}")
        return found

    def references(self, judge: str, questions: Sequence[Question]) -> dict[QuestionId, Turns]:
        """References for the graded ones of `questions`.

        They come from the judge's own file, else from the only file there is, else from the questions.

        Raises:
          ValueError: a graded question has none.
        """
        folder = self.root / "reference_answer"
        path = folder / f"{file_stem(judge)}.jsonl"
        others = sorted(folder.glob("*.jsonl"))
        if not path.is_file() and len(others) == 1:
            path = others[0]
        found = _turns_of(path)
        for question in questions:
            if question.graded and len(found.get(question.id, ())) < len(question.turns):
                found[question.id] = _own_reference(path, others, question)
        return found


def _own_reference(path: Path, others: Sequence[Path], question: Question) -> Turns:
    if len(question.reference) >= len(question.turns):
        return question.reference
    hint = ""
    if not path.is_file() and others:
        hint = f"; --references= takes one of {', '.join(other.stem for other in others)}"
    raise ValueError(
        f"question {question.id} is of category {question.category}, which is judged against a reference,"
        f" but {path} has none for {len(question.turns)} turns{hint}"
    )


def _question(where: str, row: Row) -> Question:
    try:
        id, category, turns = row["question_id"], row["category"], row["turns"]
    except KeyError as why:
        raise ValueError(f"{where}: the field {why} is missing") from why
    if not isinstance(id, int | str) or isinstance(id, bool):
        raise ValueError(f"{where}: question_id is {id!r}, neither a whole number nor text")
    if not isinstance(category, str):
        raise ValueError(f"{where}: category is {category!r}, not text")
    temperature = row.get("required_temperature")
    if temperature is not None and not isinstance(temperature, int | float):
        raise ValueError(f"{where}: required_temperature is {temperature!r}, not a number")
    reference = row.get("reference") or []
    reference = [reference] if isinstance(reference, str) else reference
    turns, reference = _texts(f"{where}: turns", turns), _texts(f"{where}: reference", reference, empty=True)
    return Question(id, category, turns, reference, temperature)


def _texts(where: str, value: Any, *, empty: bool = False) -> Turns:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where} is {value!r:.80}, not a list of texts")
    if not value and not empty:
        raise ValueError(f"{where} is empty")
    return tuple(value)


def _turns_of(path: Path) -> dict[QuestionId, Turns]:
    """question_id -> turns of the first choice, of an answer file."""
    found = {}
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        try:
            id, turns = row["question_id"], row["choices"][0]["turns"]
        except (KeyError, IndexError, TypeError) as why:
            raise ValueError(f"{where} holds no question_id with choices[0].turns") from why
        found[id] = _texts(f"{where}: turns", turns)
    return found


def answers_of_all(
    bench: Bench, models: Sequence[str], questions: Sequence[Question]
) -> Mapping[str, dict[QuestionId, Turns]]:
    """model -> its answers; raises as `Bench.answers` does."""
    return {model: bench.answers(model, questions) for model in models}
