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

`check` exits with 0 if the solution is accepted, 1 if not, 2 on bad input. --check=official is the public
benchmark's own check, which takes many cheats for success; every table prints its rate beside ours. `run`
continues where it was stopped. Scripted models: identity, oracle, oracle@3, noisy@0.3, annotator, cheater-...
"""

import json
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from mixattn.evals.dafny import command_line
from mixattn.evals.dafny.command_line import read_program
from mixattn.evals.dafny.pool import cores
from mixattn.evals.dafny.protocol import VerifierGone, Verify
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafny.tool import find
from mixattn.evals.dafny.verifier import installed
from mixattn.evals.dafnybench import (
    bench,
    cheats,
    layout,
    models,
    naming,
    runner,
    scripted,
    show,
    tasks,
    truth,
)
from mixattn.evals.dafnybench.checking import Task, check
from mixattn.tools import files
from mixattn.tools.progress import ProgressLines
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
    flags.DEFINE_enum("dialect", "none", ["none", "auto"], "auto: rewrite Dafny 4 for Dafny 2.3, both sides.")
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
        "cheats": _cheats,
        "scripted": _scripted,
        "bench": _bench,
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
    answer = check(Task("file", original, stripped), solution, _verifier(), FLAGS.check)
    if FLAGS.json:
        print(json.dumps(answer.public()))
    else:
        print("accepted" if answer.accepted else f"not accepted: {answer.verdict}")
        print(answer.feedback, end="\n" if answer.feedback else "")
    sys.exit(0 if answer.accepted else 1)


def _run(_: str) -> None:
    if FLAGS.model == "ground_truth":
        return _ground_truth()
    verify, workers = _verifier(), FLAGS.parallel or cores()
    options = {"max_tokens": FLAGS.max_tokens, "temperature": FLAGS.temperature}
    model = naming.named(FLAGS.model, FLAGS.url, verify, FLAGS.seed, **options)
    questions = _questions(FLAGS.data, FLAGS.dialect, FLAGS.sample, FLAGS.seed, verify)
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
        for _ in _followed(names, len(questions), words):
            pass
    except VerifierGone as why:
        kept = sum(map(len, journal.attempts.values()))
        raise ValueError(f"{why}; {kept} attempts are kept in {folder}: run this again to go on") from why
    layout.write(folder, FLAGS.model, questions, journal.attempts)
    _print_table(questions, journal.attempts, verify, settings)


def _questions(data: str, dialect: str, sample: int, seed: int, verify: Verify) -> list[Task]:
    """The tasks of a run, in order of their names."""
    questions = tasks.load(data)
    if sample and sample < len(questions):
        drawn = random.Random(f"tasks {seed}").sample(range(len(questions)), sample)
        questions = [questions[i] for i in sorted(drawn)]
    if dialect == "auto":
        questions = [tasks.in_dialect(task, verify)[0] for task in _counted(questions, "rewritten")]
    return questions


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
    questions = _questions(settings["data"], settings["dialect"], *drawn, verify)
    _print_table(questions, runner.load_attempts(folder), verify, settings)


def _print_table(
    questions: list[Task],
    attempts: dict[str, list[models.Attempt]],
    verify: Verify,
    settings: dict[str, Any],
) -> None:
    done = [task for task in questions if task.name in attempts]
    usable, dafny = set(), "?"
    for task in _counted(done, "originals verified"):
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


def _ground_truth() -> None:
    if FLAGS.data == "own":
        programs = [(task.name, task.original) for task in tasks.own()]
    else:
        programs = tasks.ground_truths(Path(FLAGS.data))
    rows: list[dict[str, Any]] = []
    found_rows = truth.verdicts(
        programs, _verifier(), FLAGS.parallel or cores(), rewriting=FLAGS.dialect == "auto"
    )

    def words(n: int, _: dict[str, Any]) -> str:
        good = sum(row["verdict"] == "verified" for row in rows)
        return f"{n}/{len(programs)} programs, {good} verified"

    try:
        for row in _followed(found_rows, len(programs), words):
            rows.append(row)
    except VerifierGone as why:
        raise ValueError(
            f"{why}; what was decided of {len(programs)} programs is remembered: run this again to go on"
        ) from why
    rows.sort(key=lambda r: r["program"])
    found = truth.summary(rows)
    if FLAGS.out:
        recipe = {
            "verifier": _verifier_words(),
            "dialect": FLAGS.dialect,
            "time_limit_s": FLAGS.time_limit,
            "wall_limit_s": FLAGS.wall_limit,
        }
        results.write_csv(FLAGS.out, rows, device=results.processor(), **recipe)
    if FLAGS.json:
        print(json.dumps(found))
    else:
        print(", ".join(f"{n} {verdict}" for verdict, n in sorted(found["verdicts"].items())))
        print(f"{found['exit_0']} of {found['programs']} end with exit code 0; empty ones prove nothing")
        print(", ".join(f"{name} {good}/{of}" for name, (good, of) in found["verified"].items()))


def _verifier_words() -> str:
    tool = find()
    return f"dafny {tool.dafny_version}, z3 {tool.z3_version or 'of its own'}"


def _cheats(_: str) -> None:
    """A list of cheats and honest solutions under both checks."""
    total = len(cheats.CHEATS) + len(cheats.HONEST)
    judged = cheats.judged(_verifier(), FLAGS.parallel)
    rows = list(_followed(judged, total, lambda n, row: f"{n}/{total} programs, last {row['name'][:40]}"))
    rows.sort(key=lambda row: (row["kind"], not row["public_check_accepts"], row["name"]))
    columns = ("exit_0", "public_check_accepts", "ours_accepts")
    found: dict[str, dict[str, int]] = {}
    for kind in ("cheat", "honest"):
        part = [row for row in rows if row["kind"] == kind]
        found[kind] = {"programs": len(part), **{c: sum(row[c] for row in part) for c in columns}}
    if FLAGS.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{kind}: {counts}" for kind, counts in found.items()))
    if FLAGS.out:
        results.write_csv(FLAGS.out, rows, device=results.processor(), verifier=_verifier_words())


def _scripted(_: str) -> None:
    """Every scripted model on our programs, under both checks."""
    folder = Path(FLAGS.workdir or "runs/dafnybench-scripted")
    rates = scripted.rates(
        tasks.own(),
        _verifier(),
        folder,
        attempts=FLAGS.attempts,
        parallel=FLAGS.parallel or cores(),
        seed=FLAGS.seed,
    )
    rows = list(_followed(rates, len(scripted.MODELS), lambda n, row: f"{row['model']} done"))
    if FLAGS.json:
        print(json.dumps(rows))
    else:
        print(f"{'model':20} {'of':>4} {'strict':>8} {'public check':>13}")
        for row in rows:
            strict, public = (f"{100 * row[key]:.1f} %" for key in ("rate", "public_check_rate"))
            print(f"{row['model']:20} {row['tasks']:4} {strict:>8} {public:>13}")
    if FLAGS.out:
        note = "scripted models: they measure the checks and no language model"
        results.write_csv(
            FLAGS.out,
            rows,
            device=results.processor(),
            verifier=_verifier_words(),
            seed=FLAGS.seed,
            note=note,
        )


def _bench(_: str) -> None:
    """The strict check without the verifier."""
    rows = list(bench.timings())
    for row in rows:
        line = "{lines} lines: {first_check_cpu_ms} ms, {next_check_cpu_ms} ms for a task's later solutions"
        print(json.dumps(row) if FLAGS.json else line.format(**row))
    if FLAGS.out:
        results.write_csv(FLAGS.out, rows, device=results.processor(), repeats="median of 21")


def _followed[T](items: Iterable[T], total: int, words: Callable[[int, T], str]) -> Iterator[T]:
    """The items, with a line of progress on standard error behind each."""
    with ProgressLines(console=Console(stderr=True, highlight=False), transient=True) as lines:
        line = lines.add(total)
        for n, item in enumerate(items, 1):
            line.update(n, words(n, item))
            yield item


def _counted(items: list[Task], what: str) -> Iterator[Task]:
    return _followed(items, len(items), lambda n, _: f"{n}/{len(items)} {what}")
