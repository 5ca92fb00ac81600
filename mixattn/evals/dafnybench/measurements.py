"""The subcommands of `dafnybench` that measure verifier, checks and scripted models."""

import json
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals.dafny.command_line import followed
from mixattn.evals.dafny.pool import cores
from mixattn.evals.dafny.protocol import VerifierGone, Verify
from mixattn.evals.dafny.tool import find
from mixattn.evals.dafny.verifier import Dafny, installed
from mixattn.evals.dafnybench import bench, cheats, pool_bench, scripted, tasks, truth
from pallas_kernels import results

FLAGS = flags.FLAGS


def ground_truth() -> None:
    """The reference answers under this verifier."""
    if FLAGS.data == "own":
        programs = [(task.name, task.original) for task in tasks.own()]
    else:
        programs = tasks.ground_truths(Path(FLAGS.data))
    rows: list[dict[str, Any]] = []
    found_rows = truth.verdicts(
        programs,
        _verifier(),
        FLAGS.parallel or cores(),
        rewriting=FLAGS.dialect == "auto",
    )

    def words(n: int, row: dict[str, Any]) -> str:
        good = sum(each["verdict"] == "verified" for each in [*rows, row])
        return f"{n}/{len(programs)} programs, {good} verified"

    try:
        for row in followed(found_rows, len(programs), words):
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


def cheats_table(_: str) -> None:
    """A list of cheats and honest solutions under both checks."""
    total = len(cheats.CHEATS) + len(cheats.HONEST)
    judged = cheats.judged(_verifier(), FLAGS.parallel)
    rows = list(followed(judged, total, lambda n, row: f"{n}/{total} programs, last {row['name'][:40]}"))
    rows.sort(key=lambda row: (row["kind"], not row["public_check_accepts"], row["name"]))
    columns = ("exit_0", "public_check_accepts", "ours_accepts")
    found: dict[str, dict[str, int]] = {}
    for kind in ("cheat", "honest"):
        part = [row for row in rows if row["kind"] == kind]
        found[kind] = {"programs": len(part), **{c: sum(row[c] for row in part) for c in columns}}
    if FLAGS.json:
        print(json.dumps(found))
    else:
        words = (
            "{programs} {kind}: {exit_0} end with exit code 0, {public_check_accepts} pass the public check,"
            " {ours_accepts} ours"
        )
        names = {"cheat": "cheats", "honest": "honest solutions"}
        print("\n".join(words.format(kind=names[kind], **counts) for kind, counts in found.items()))
    if FLAGS.out:
        results.write_csv(FLAGS.out, rows, device=results.processor(), verifier=_verifier_words())


def scripted_models(_: str) -> None:
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
    rows = list(followed(rates, len(scripted.MODELS), lambda n, row: f"{row['model']} done"))
    if FLAGS.json:
        print(json.dumps({"rows": rows}))
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


def bench_check(_: str) -> None:
    """The strict check without the verifier."""
    rows = list(bench.timings())
    if FLAGS.json:
        print(json.dumps({"rows": rows}))
    for row in [] if FLAGS.json else rows:
        line = "{lines} lines: {first_check_cpu_ms} ms, {next_check_cpu_ms} ms for a task's later solutions"
        print(line.format(**row))
    if FLAGS.out:
        results.write_csv(FLAGS.out, rows, device=results.processor(), repeats="median of 21")


def bench_pool(_: str) -> None:
    """The pool beside a bare loop over the verifier."""
    questions = tasks.chosen(FLAGS.data, "none", FLAGS.sample, FLAGS.seed, _verifier())
    verify = Dafny(find(), FLAGS.time_limit, FLAGS.wall_limit)
    rows = list(pool_bench.timings(questions, verify, FLAGS.parallel or cores()))
    if FLAGS.json:
        print(json.dumps({"rows": rows}))
    for row in [] if FLAGS.json else rows:
        line = (
            "{workers} at once: {pool_over_bare_loop} of the bare loop's time, {programs_a_second} programs"
            " a second of at most {floor_programs_a_second}"
        )
        print(line.format(**row))
    if FLAGS.out:
        results.write_csv(FLAGS.out, rows, device=results.processor(), verifier=_verifier_words())


def _verifier_words() -> str:
    tool = find()
    return f"dafny {tool.dafny_version}, z3 {tool.z3_version or 'of its own'}"


def _verifier() -> Verify:
    return installed(FLAGS.time_limit, FLAGS.wall_limit)
