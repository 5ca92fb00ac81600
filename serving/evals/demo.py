"""Ranks four settings of one model: they answer 80 questions, a judge compares, `arena fit` ranks.

    python -m serving.evals demo --workdir=runs/arena                       about 6 minutes on one core
    python -m serving.evals demo --workdir=runs/arena --budget=16           a smaller budget of keys
    python -m serving.evals demo --workdir=runs/arena --judge=DIR           a judge of your own

full keeps every key, window the last --budget, heavy as many by attention (H2O); untrained has random
weights. The judge is of kind `answer`: of two answers the one with the higher mean log-probability wins.
Where no larger model is at hand it is the model itself with its full cache, which favours its own words by
construction; the output says so. Ctrl-C and kill -9 lose at most one batch: the same command continues.
"""

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals.command_line import needed, run
from mixattn.evals.judge import matches as matching
from mixattn.evals.judge import templates
from mixattn.evals.judge.bench import Bench, answers_of_all
from mixattn.evals.judge.commands import questions as own_questions
from mixattn.evals.judge.judging import JudgeOptions, ModelJudge
from mixattn.evals.judge.lines import LineLog, Row, read_rows
from mixattn.evals.judge.matches import JudgeMatch, key_of_row
from mixattn.evals.judge.tables import verdict
from mixattn.tools import files
from serving.evals.settings import SETTINGS

FLAGS = flags.FLAGS
KNOWN = ("models/smollm2", "runs/demo/model")  # the first that is there is used
BATCH = 16
WINNER = {"model_1": "model_a", "model_2": "model_b", "tie": "tie"}


def start(argv: list[str]) -> None:
    flags.DEFINE_string(
        "workdir", None, "Folder of questions, answers, judgments and votes; continued if there."
    )
    flags.DEFINE_string("model", None, f"Hugging Face directory; by default the first of {', '.join(KNOWN)}.")
    flags.DEFINE_string("judge", None, "Model that judges; by default --model with its full cache.")
    flags.DEFINE_integer("budget", 32, "Keys that window and heavy keep in each layer.", 2)
    flags.DEFINE_integer("max_tokens", 24, "Most tokens of an answer.", 1)
    flags.DEFINE_integer("first_n", 80, "Questions, at most 80.", 2, 80)
    flags.DEFINE_string("csv", None, "File for the table.")
    flags.DEFINE_list("settings", list(SETTINGS), "Settings to compare.")
    run(__name__, _main, argv)


def _main() -> None:
    workdir, model = Path(needed("workdir", "runs/arena")), _model()
    judge = Path(FLAGS.judge) if FLAGS.judge else model
    if not (judge / "config.json").exists():
        raise ValueError(f"--judge={judge} holds no model")
    if unknown := [name for name in FLAGS.settings if name not in SETTINGS]:
        raise ValueError(f"--settings holds {unknown[0]!r}, which is not one of {', '.join(SETTINGS)}")
    recipe = {
        "model": str(model),
        "judge": str(judge),
        "budget": FLAGS.budget,
        "max_tokens": FLAGS.max_tokens,
    }
    bench = prepare(workdir, recipe, FLAGS.first_n)
    answer_all(bench, model)
    rows = judge_all(bench, judge)
    votes = workdir / "votes.jsonl"
    files.write_text(votes, "".join(json.dumps(vote) + "\n" for vote in as_votes(rows, judge.name)))
    _say(f"{len(rows)} comparisons; judge: {judge} by the mean log-probability of each answer")
    if judge == model:
        _say("the judge is the model itself with its full cache: it favours `full` by construction")
    fit = [sys.executable, "-m", "mixattn.evals", "arena", "fit", f"--votes={votes}"]
    fit += ["--cluster=question_id", "--prior_ties=1"]
    if FLAGS.csv:
        _write(json.loads(subprocess.run([*fit, "--json"], check=True, capture_output=True).stdout), recipe)
    sys.exit(subprocess.run(fit, check=False).returncode)


def _write(report: dict[str, Any], recipe: dict[str, Any]) -> None:
    from pallas_kernels.results import write_csv

    rows = [
        {name: round(x, 1) if isinstance(x, float) else x for name, x in row.items()}
        for row in report["models"]
    ]
    what = "answers to the first turns of our own questions, at most max_tokens tokens, greedy"
    write_csv(FLAGS.csv, rows, **recipe, questions=FLAGS.first_n, data=what, intervals="by question")


def _model() -> Path:
    if FLAGS.model:
        known: Sequence[str] = (FLAGS.model,)
    else:
        known = KNOWN
    for path in map(Path, known):
        if (path / "config.json").exists():
            return path
    raise ValueError(f"no model in {' or '.join(known)}; `make model` fetches one, `make demo` trains one")


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def prepare(workdir: Path, recipe: dict[str, Any], first_n: int) -> Bench:
    """The folder with the first turns of our own questions.

    Raises:
      ValueError: the folder was begun with another recipe.
    """
    path = workdir / "recipe.json"
    if path.exists() and (before := json.loads(path.read_text())) != recipe:
        name = next(name for name in recipe if before.get(name) != recipe[name])
        raise ValueError(
            f"--workdir={workdir} was begun with {name} {before.get(name)}, not {recipe[name]}; name another"
        )
    bench = Bench(workdir / "bench")
    for name in own_questions.NAMES:
        (bench.root / name).parent.mkdir(parents=True, exist_ok=True)
        text = (own_questions.OWN / name).read_text(encoding="utf-8")
        if name == "question.jsonl":
            rows = [json.loads(line) for line in text.splitlines()][:: max(1, 80 // first_n)][:first_n]
            text = "".join(json.dumps(row | {"turns": row["turns"][:1]}) + "\n" for row in rows)
        files.write_text(bench.root / name, text)
    files.write_text(path, json.dumps(recipe))
    return bench


def answer_all(bench: Bench, path: Path) -> None:
    """Every setting's missing answers, a batch at a time."""
    questions = bench.questions()
    logs = {name: _missing(bench, name, questions) for name in FLAGS.settings}
    if not any(logs.values()):
        return
    from mixattn import hf
    from serving.evals import loading, settings

    tokenizer, render = hf.load_tokenizer(path), loading.renderer(path)
    prompts = {q.id: render([{"role": "user", "content": q.turns[0]}]) for q in questions}
    length = -(-max(map(len, prompts.values())) // 16) * 16
    model, stop = hf.load(path)[0], tuple(hf.stop_ids(path))
    for name, todo in logs.items():
        setting = settings.make(name, model, FLAGS.budget)
        with LineLog(bench.answer_path(name)) as log:
            for batch in (todo[i : i + BATCH] for i in range(0, len(todo), BATCH)):
                begin_s = time.monotonic()
                ids = [prompts[id] for id in batch]
                ids += [ids[0]] * (BATCH - len(ids))  # one shape, one program
                rows = settings.answer(
                    setting, ids, length=length, max_new_tokens=FLAGS.max_tokens, stop=stop
                )
                for id, row in zip(batch, rows):
                    log.append(_answer_line(id, name, tokenizer.decode(row)))
                _say(f"{name}: {len(batch)} questions answered in {time.monotonic() - begin_s:.1f} s")


def _missing(bench: Bench, name: str, questions: Sequence[Any]) -> list[Any]:
    done = {row.get("question_id") for row in read_rows(bench.answer_path(name), torn_end=True)}
    return [question.id for question in questions if question.id not in done]


def _answer_line(question: Any, name: str, text: str) -> Row:
    choices = [{"index": 0, "turns": [text]}]
    return {
        "question_id": question,
        "answer_id": uuid.uuid4().hex,
        "model_id": name,
        "choices": choices,
        "tstamp": time.time(),
    }


def judge_all(bench: Bench, path: Path) -> list[Row]:
    """The judgments of every pair of settings, those that are missing asked for."""
    questions = bench.questions()
    references = bench.references("own", questions)
    answers = answers_of_all(bench, FLAGS.settings, questions)
    wanted = {
        match.key: match
        for match in matching.make(
            "pairwise_all", questions, answers, references, templates.load(templates.OWN)
        )
    }
    file = bench.judgment_path(f"{path.name}-answer", "pair")
    with LineLog(file) as log:
        done = {key_of_row(row) for row in read_rows(file)}
        if todo := [match for key, match in wanted.items() if key not in done]:
            asyncio.run(_judge(todo, path, log))
    return [row for row in read_rows(file) if key_of_row(row) in wanted]


async def _judge(todo: Sequence[JudgeMatch], path: Path, log: LineLog) -> None:
    from serving.evals.scoring import load_scorer

    judge = ModelJudge(load_scorer(path), f"{path.name}-answer", JudgeOptions(verdict="answer"))

    async def through(call: Any) -> Any:
        return await call()

    begin_s = time.monotonic()
    for number, match in enumerate(todo, 1):
        log.append(await judge.judge(match, through))
        if number % 60 == 0 or number == len(todo):
            _say(f"judge: {number} of {len(todo)} comparisons in {time.monotonic() - begin_s:.1f} s")


def as_votes(rows: Sequence[Row], judge: str) -> Iterator[Row]:
    """The verdicts as votes in the arena's public format."""
    for row in rows:
        if (won := verdict(row)) != "error":
            yield {
                **{
                    "question_id": str(row["question_id"]),
                    "model_a": row["model_1"],
                    "model_b": row["model_2"],
                },
                **{"winner": WINNER[won], "judge": judge, "anony": True, "language": "English"},
                "tstamp": row["tstamp"],
            }
