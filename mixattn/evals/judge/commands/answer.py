"""Has a model answer the questions of a bench, into BENCH/model_answer/MODEL.jsonl.

    python -m mixattn.evals judge answer --bench=runs/bench --model=tiny --url=http://127.0.0.1:8000/v1
    python -m mixattn.evals judge answer --bench=runs/bench --model=echo --url=scripted:echo

Temperatures follow the category of a question. Ctrl-C and kill -9 lose only what was under way: the same
command continues, and a finished file is not asked for again.
"""

import asyncio
from typing import Any

from absl import flags

from mixattn.evals import command_line
from mixattn.evals.judge import answering
from mixattn.evals.judge.answering import AnswerOptions
from mixattn.evals.judge.bench import Question
from mixattn.evals.judge.commands import calling
from mixattn.evals.judge.lines import LineLog, read_rows
from mixattn.evals.judge.play import Caller, Outcome, play

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    calling.define_flags()
    flags.DEFINE_string("model", "", "Name of the model on the server, and of its file.")
    flags.DEFINE_integer("max_tokens", 1024, "Most tokens of one answer.")
    flags.DEFINE_integer(
        "choices", 1, "Independent conversations for each question; the first one is judged."
    )
    flags.DEFINE_float("temperature", None, "Use this temperature instead of the category's.")
    flags.DEFINE_integer("seed", 0, "Seed of the first choice; the next ones count up.")
    command_line.run(__name__, _main, argv, shared=(calling.__name__,))


def _main() -> None:
    name = command_line.needed("model", "tiny")
    bench, caller = calling.bench(), calling.caller()
    calling.check_url()
    questions, path = calling.questions(bench), bench.answer_path(name)
    with LineLog(path) as log:
        done = {row.get("question_id") for row in read_rows(path)}
        todo = [question for question in questions if question.id not in done]
        outcome = asyncio.run(_answer(name, todo, caller, log))
    answering.sort_file(path)
    figures = {
        "model": name,
        "file": str(path),
        "questions": len(questions),
        "reused": len(questions) - len(todo),
    }
    figures |= {"answered": outcome.written, **caller.figures()}
    words = f"{outcome.written} questions answered, {figures['reused']} were there already: {path}"
    calling.report(figures, [words], outcome)


async def _answer(name: str, todo: list[Question], caller: Caller, log: LineLog) -> Outcome:
    options = AnswerOptions(
        max_tokens=FLAGS.max_tokens,
        choices=FLAGS.choices,
        temperature=FLAGS.temperature,
        seed=FLAGS.seed,
    )
    async with calling.opened(name) as model:

        async def do(question: Question) -> dict[str, Any]:
            caller.check_budget()
            return await answering.answer(model, name, question, options, caller)

        with calling.progress(f"{name} answers", len(todo), caller) as on_line:
            return await play(todo, do, _words, log, parallel=FLAGS.parallel, on_line=on_line)


def _words(question: Question) -> str:
    return f"question {question.id}"
