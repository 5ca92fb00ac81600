"""Answers of a model to the questions of a bench, turn by turn, in FastChat's form."""

import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixattn.evals.judge.bench import Question
from mixattn.evals.judge.judging import Through
from mixattn.evals.judge.lines import read_rows
from mixattn.evals.llm import Completion, LanguageModel
from mixattn.tools import files

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}  # FastChat's, by category
OTHER_TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are drawn: `choices` independent conversations; `temperature` None means by category."""

    max_tokens: int = 1024
    choices: int = 1
    temperature: float | None = None
    seed: int = 0


def temperature_of(question: Question, forced: float | None = None) -> float:
    """The forced temperature, else what the question demands, else its category's."""
    if forced is not None:
        return forced
    if question.temperature is not None:
        return question.temperature
    return TEMPERATURES.get(question.category, OTHER_TEMPERATURE)


async def answer(
    model: LanguageModel, name: str, question: Question, options: AnswerOptions, through: Through
) -> dict[str, Any]:
    """One line of an answer file.

    Raises:
      CallFailed: a turn failed for good; nothing of the question is kept then.
    """
    choices = []
    for index in range(options.choices):
        turns = await _converse(model, question, options, options.seed + index, through)
        choices.append({"index": index, "turns": turns})
    return {
        "question_id": question.id,
        "answer_id": uuid.uuid4().hex,
        "model_id": name,
        "choices": choices,
        "tstamp": time.time(),
    }


async def _converse(
    model: LanguageModel, question: Question, options: AnswerOptions, seed: int, through: Through
) -> list[str]:
    messages: list[dict[str, str]] = []
    temperature = temperature_of(question, options.temperature)
    for text in question.turns:
        messages.append({"role": "user", "content": text})

        async def call() -> Completion:
            return await model.complete_messages(
                messages, max_tokens=options.max_tokens, temperature=temperature, seed=seed
            )

        messages.append({"role": "assistant", "content": (await through(call)).text})
    return [message["content"] for message in messages[1::2]]


def sort_file(path: Path) -> None:
    """Sorts an answer file by question and keeps the last answer to each, as FastChat does at the end."""
    found = {row["question_id"]: row for row in read_rows(path)}
    order = sorted(found, key=lambda id: (isinstance(id, str), id))

    files.write_text(path, "".join(json.dumps(found[id]) + "\n" for id in order))
