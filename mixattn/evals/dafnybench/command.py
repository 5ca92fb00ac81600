"""Proof hints for programs that lost them (DafnyBench, arXiv 2406.08467), checked without trust.

    python -m mixattn.evals dafnybench strip sum.dfy > bare.dfy        removes the hints
    python -m mixattn.evals dafnybench check --original=sum.dfy --stripped=bare.dfy --solution=mine.dfy
    python -m mixattn.evals dafnybench run --data=own --model=annotator --workdir=runs/annotator
    python -m mixattn.evals dafnybench run --data=own --model=NAME --url=http://localhost:8000/v1
    python -m mixattn.evals dafnybench run --data=CHECKOUT --model=ground_truth --dialect=auto
    python -m mixattn.evals dafnybench show --workdir=runs/annotator
    python -m mixattn.evals dafnybench cheats                          what each check lets pass
    python -m mixattn.evals dafnybench scripted --attempts=3           every scripted model on our programs
    python -m mixattn.evals dafnybench bench                           the strict check's time
    python -m mixattn.evals dafnybench pool --sample=12                the pool beside a bare loop

`check` exits with 0 if the solution is accepted, 1 if not, 2 on bad input. --check=official is the public
benchmark's own check, which takes many cheats for success; every table prints its rate beside ours. `run`
continues where it was stopped. Scripted models: identity, oracle, oracle@3, noisy@0.3, annotator, cheater-...
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals.dafny import command_line
from mixattn.evals.dafny.command_line import read_program
from mixattn.evals.dafny.dialect import level_for
from mixattn.evals.dafny.pool import cores
from mixattn.evals.dafny.protocol import VerifierGone, Verify
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafny.verifier import installed
from mixattn.evals.dafnybench import layout, measurements, models, naming, runner, show, tasks
from mixattn.evals.dafnybench.checking import Task, check_in_dialect
from mixattn.evals.llm import CallFailed
from mixattn.tools import files
from pallas_kernels import results

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("original", "", "check: the program with its author's hints.")
    flags.DEFINE_string("stripped", "", "check: the program without hints; default: ours of --original.")
    flags.DEFINE_string("solution", "", "check: the program to judge.")
    flags.DEFINE_enum("check", "strict", ["strict", "official"], "Ours on tokens, or the public one.")
    flags.DEFINE_string("data", "own", "run: own, or a checkout of the public repository.")
    flags.DEFINE_string("model", "identity", "run: a scripted model, ground_truth, or a server's model.")
    flags.DEFINE_string("url", "", "run: the server's address, e.g. http://localhost:8000/v1.")
    flags.DEFINE_integer("attempts", 10, "run: replies a task may take.", lower_bound=1)
    flags.DEFINE_integer("parallel", 0, "run: tasks at once; 0: one for each core.", lower_bound=0)
    flags.DEFINE_integer("budget_calls", 0, "run: replies over all tasks; 0: no limit.", lower_bound=0)
    flags.DEFINE_integer("max_tokens", 4096, "run: of one reply of a server's model.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.3, "run: of a server's model.", lower_bound=0.0)
    flags.DEFINE_float(
        "budget_seconds", 0.0, "run: no reply is asked for after so long; 0: no limit.", lower_bound=0.0
    )
    flags.DEFINE_integer("sample", 0, "run: only so many tasks, drawn by --seed; 0: all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "run: of the noisy model and of --sample.")
    flags.DEFINE_enum(
        "dialect", "none", ["none", "auto"], "run, check: auto rewrites Dafny 4 for Dafny 2.3, both sides."
    )
    flags.DEFINE_string("workdir", "", "run, show: the folder of the run; default: runs/dafnybench-MODEL.")
    flags.DEFINE_string("out", "", "run --model=ground_truth, show, cheats: also write a CSV.")
    flags.DEFINE_integer("time_limit", 20, "Solver seconds for one procedure.", lower_bound=1)
    flags.DEFINE_float("wall_limit", 120.0, "Seconds after which the verifier is killed.", lower_bound=0.1)
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    subcommands = {
        "check": _check,
        "strip": _strip,
        "run": _run,
        "show": _show,
        "cheats": measurements.cheats_table,
        "scripted": measurements.scripted_models,
        "bench": measurements.bench_check,
        "pool": measurements.bench_pool,
    }
    command_line.run(__name__, subcommands, argv)


def _verifier() -> Verify:
    return installed(FLAGS.time_limit, FLAGS.wall_limit)


def _strip(file: str) -> None:
    sys.stdout.write(strip(read_program(file)))


def _check(_: str) -> None:
    original = read_program(FLAGS.original, "--original")
    stripped = read_program(FLAGS.stripped) if FLAGS.stripped else strip(original)
    solution = read_program(FLAGS.solution, "--solution")
    task, verify = Task("file", original, stripped), _verifier()
    level = level_for(original, verify) if FLAGS.dialect == "auto" else 0
    answer = check_in_dialect(task, solution, level, verify, FLAGS.check)
    if FLAGS.json:
        print(json.dumps(answer.public()))
    else:
        print("accepted" if answer.accepted else f"not accepted: {answer.verdict}")
        print(answer.feedback, end="\n" if answer.feedback else "")
    sys.exit(0 if answer.accepted else 1)


def _run(_: str) -> None:
    if FLAGS.model == "ground_truth":
        return measurements.ground_truth()
    verify, workers = _verifier(), FLAGS.parallel or cores()
    options = {"max_tokens": FLAGS.max_tokens, "temperature": FLAGS.temperature}
    model = naming.named(FLAGS.model, FLAGS.url, verify, FLAGS.seed, **options)
    questions = tasks.chosen(FLAGS.data, FLAGS.dialect, FLAGS.sample, FLAGS.seed, verify)
    folder = Path(FLAGS.workdir or f"runs/dafnybench-{FLAGS.model}")
    settings = _settings()
    journal = runner.Journal(folder, settings)
    budget = runner.Budget(FLAGS.budget_calls, FLAGS.budget_seconds)
    names = runner.run(
        questions,
        model,
        verify,
        journal,
        attempts=FLAGS.attempts,
        parallel=workers,
        mode=FLAGS.check,
        budget=budget,
    )

    def words(n: int, name: str) -> str:
        accepted = sum(past[-1].accepted for past in journal.attempts.values() if past)
        return f"{n}/{len(questions)} tasks, {accepted} accepted, last {name[:40]}"

    try:
        for _ in command_line.followed(names, len(questions), words):
            pass
    except (VerifierGone, CallFailed) as why:
        kept = sum(map(len, journal.attempts.values()))
        what = "the model gave no answer: " * isinstance(why, CallFailed)
        raise ValueError(
            f"{what}{why}; {kept} attempts are kept in {folder}: run this again to go on"
        ) from why
    layout.write(folder, FLAGS.model, questions, journal.attempts)
    _print_table(questions, journal.attempts, verify, settings)


def _settings() -> dict[str, Any]:
    names = ("data", "model", "attempts", "check", "dialect", "seed", "time_limit", "wall_limit")
    settings = {name: FLAGS[name].value for name in names}
    settings |= {"sample": FLAGS.sample} if FLAGS.sample else {}
    return settings | (
        {name: FLAGS[name].value for name in ("max_tokens", "temperature")} if FLAGS.url else {}
    )


def _show(_: str) -> None:
    folder = Path(FLAGS.workdir or f"runs/dafnybench-{FLAGS.model}")
    if not (folder / "run.json").exists():
        raise ValueError(f"{folder} holds no run; make one with: python -m mixattn.evals dafnybench run")
    settings = files.read_json(folder / "run.json")
    verify = installed(settings["time_limit"], settings["wall_limit"])
    drawn = settings.get("sample", 0), settings["seed"]
    questions = tasks.chosen(settings["data"], settings["dialect"], *drawn, verify)
    _print_table(questions, runner.load_attempts(folder), verify, settings)


def _print_table(
    questions: list[Task],
    attempts: dict[str, list[models.Attempt]],
    verify: Verify,
    settings: dict[str, Any],
) -> None:
    done = [task for task in questions if task.name in attempts]
    usable, dafny = set(), "?"
    for task in command_line.followed(done, len(done), lambda n, _: f"{n}/{len(done)} originals verified"):
        original = verify(task.original)
        dafny = original.dafny
        if original.verdict == "verified":
            usable.add(task.name)
    found = show.table(questions, attempts, usable, dafny)
    print(json.dumps(found) if FLAGS.json else show.lines(found))
    if FLAGS.out:
        data = "own" if settings["data"] == "own" else "a checkout of DafnyBench"
        about = settings | {"data": data, "tasks": found["tasks"], "done": found["done"], "dafny": dafny}
        rows = [{"denominator": name, **row} for name, row in found["rates"].items()]
        results.write_csv(FLAGS.out, rows, device=results.processor(), **about, note=show.UNEQUAL)
