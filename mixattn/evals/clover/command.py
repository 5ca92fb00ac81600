"""Clover: checks that code, annotation and docstring of a Dafny method say the same.

    python -m mixattn.evals clover run --model=oracle                   our own set, a scripted model
    python -m mixattn.evals clover show                                 acceptance by kind and edge, ablation
    python -m mixattn.evals clover run --model=NAME --url=http://127.0.0.1:8000/v1 --k=10 --out=runs/NAME
    python -m mixattn.evals clover run --data=CHECKOUT --model=ground_truth --dialect=auto
    python -m mixattn.evals clover run --data=CHECKOUT --edges=anno-sound --out=runs/clover-sound
    python -m mixattn.evals clover check --code=max.dfy --doc=max.txt --tests=main.dfy --model=NAME --url=URL
    python -m mixattn.evals clover check --code=body.dfy --spec=spec.dfy --doc=max.txt --json

`check` reads one method. Its annotation stands in --code, or in --spec as the signature with its clauses.
--tests holds a `Main` that calls the method and prints. Exit codes of `check`: 0 accepted, 1 not, 2 bad
input. Without a model only the verifier's edge, anno-sound, is checked, and the method is not accepted.

`run` resumes when it is started again. Scripted models, which need no server: oracle takes
every text of the own set at its word, charitable guesses what was meant, noisy is an oracle that is right
with probability --p at each try, ground_truth always answers with the right triple. Programs that are run
for the output checks are confined: no network, a folder of their own, limits on time, memory and processes.
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mixattn.evals.clover import models, own, public, tables
from mixattn.evals.clover.checks import CloverReport, Tools, check
from mixattn.evals.clover.experiment import Results, Row, read_rows, run_all
from mixattn.evals.clover.method import Method, read_method
from mixattn.evals.clover.outputs import installed_runner
from mixattn.evals.clover.triple import EDGES, Edge, Triple, with_annotation
from mixattn.evals.dafny import command_line
from mixattn.evals.dafny.process import confinement
from mixattn.evals.dafny.tool import find
from mixattn.evals.dafny.verifier import installed
from mixattn.evals.llm import CallFailed
from mixattn.tools import files
from pallas_kernels import results as ledger

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_string("code", "", "check: file with the method.")
    flags.DEFINE_string("spec", "", "check: file with its signature and clauses, if --code has no clauses.")
    flags.DEFINE_string("doc", "", "check: file with its docstring.")
    flags.DEFINE_string("tests", "", "check: file with a Main that calls it and prints.")
    flags.DEFINE_string("data", "own", "run: `own`, or a checkout of CloverBench.")
    flags.DEFINE_enum(
        "dialect", "none", ["none", "auto"], "run: auto rewrites Dafny 4 for Dafny 2.3, every component."
    )
    flags.DEFINE_string("out", "runs/clover", "run, show: folder of the results.")
    flags.DEFINE_string("csv", "", "show: also write the tables here, as CSV.")
    flags.DEFINE_string("model", "", "A scripted model, or the model's name on the server of --url.")
    flags.DEFINE_string("url", "", "An OpenAI-compatible server, up to and including /v1.")
    flags.DEFINE_string("api_key_env", "", "Environment variable with the server's API key.")
    flags.DEFINE_float("temperature", 0.0, "Temperature of the model.", lower_bound=0.0)
    flags.DEFINE_float(
        "p", 0.7, "Probability that the noisy model is right.", lower_bound=0.0, upper_bound=1.0
    )
    flags.DEFINE_integer("k", 1, "Tries of each edge.", lower_bound=1, upper_bound=100)
    flags.DEFINE_integer("seed", 0, "Seed of every call.")
    flags.DEFINE_list("edges", list(EDGES), "The checks to make.")
    flags.DEFINE_list("kinds", ["right", "C1", "C2", "C3", "C6"], "run: kinds of triples.")
    flags.DEFINE_bool("early_quit", False, "Stop a triple at its first edge that does not pass.")
    flags.DEFINE_integer("parallel", 2, "run: triples at once.", lower_bound=1)
    flags.DEFINE_integer("limit", 0, "run: only the first triples; 0 means all.", lower_bound=0)
    flags.DEFINE_integer("time_limit", 20, "Seconds of the solver for one procedure.", lower_bound=1)
    flags.DEFINE_float("wall_limit", 120.0, "Seconds after which the verifier is killed.", lower_bound=0.1)
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    command_line.run(__name__, {"check": _check, "run": _run, "show": _show}, argv)


def _tools() -> Tools:
    verify = installed(FLAGS.time_limit, FLAGS.wall_limit)
    return Tools(verify, installed_runner(), temperature=FLAGS.temperature)


def _edges() -> list[Edge]:
    for edge in FLAGS.edges:
        if edge not in EDGES:
            raise ValueError(f"--edges names {edge!r}; the checks are {', '.join(EDGES)}")
    if not FLAGS.edges:
        raise ValueError(f"--edges is empty; the checks are {', '.join(EDGES)}")
    return [edge for edge in EDGES if edge in FLAGS.edges]


def _key() -> str | None:
    return os.environ.get(FLAGS.api_key_env) if FLAGS.api_key_env else None


# ---- check --------------------------------------------------------------------------------------------
def _check(_: str) -> None:
    models.check_names(FLAGS.model, FLAGS.url)
    edges = _edges()
    tests = command_line.read_program(FLAGS.tests, "--tests") if FLAGS.tests else ""
    docstring = " ".join(command_line.read_program(FLAGS.doc, "--doc").split())
    triple = Triple("given", "right", _method(), docstring, tests)
    tools = _tools()
    try:
        report = asyncio.run(_one(triple, tools, edges))
    except CallFailed as why:
        raise ValueError(f"the model gave no answer: {why}") from why
    if FLAGS.json:
        found = {edge: asdict(result) for edge, result in report.edges.items()}
        print(json.dumps({"accepted": report.accepted, "edges": found, "k": FLAGS.k, "model": FLAGS.model}))
    else:
        print("accepted" if report.accepted else "not accepted")
        for edge, result in report.edges.items():
            print(f"  {edge:14} {result.status:11} {' '.join(result.reason.split())[:160]}".rstrip())
    sys.exit(0 if report.accepted else 1)


def _method() -> Method:
    method = read_method(command_line.read_program(FLAGS.code, "--code"))
    if not FLAGS.spec:
        return method
    specified = read_method(command_line.read_program(FLAGS.spec, "--spec"), method.name)
    if not specified.same_signature(method):
        raise ValueError(f"--spec is for {specified.signature!r}, --code for {method.signature!r}")
    if method.clauses and method.clauses != specified.clauses:
        raise ValueError(
            f"--code has {len(method.clauses)} clauses of its own,"
            f" which differ from the {len(specified.clauses)} of --spec"
        )
    return with_annotation(method, specified.clauses)


async def _one(triple: Triple, tools: Tools, edges: list[Edge]) -> CloverReport:
    known = own.right_triples() if FLAGS.model == "ground_truth" else []
    async with models.opened(FLAGS.model, FLAGS.url, _key(), FLAGS.p, known) as model:
        options = {"edges": edges, "early_quit": FLAGS.early_quit}
        return await check(triple, replace(tools, model=model), k=FLAGS.k, seed=FLAGS.seed, **options)


# ---- run ----------------------------------------------------------------------------------------------
def _run(_: str) -> None:
    models.check_names(FLAGS.model, FLAGS.url)
    edges = _edges()
    if not FLAGS.model and edges != ["anno-sound"]:
        raise ValueError("--model is missing; without a model run with --edges=anno-sound")
    if FLAGS.data != "own" and FLAGS.model in ("oracle", "charitable", "noisy"):
        raise ValueError(
            f"--model={FLAGS.model} knows our own set only, not --data={FLAGS.data}; use ground_truth"
        )
    everything, troubles = _data()
    tools, tool = _tools(), find()
    if FLAGS.dialect == "auto":
        everything = public.in_dialect(everything, tools.verify)
    triples = [t for t in everything if t.kind in FLAGS.kinds]
    triples = triples[: FLAGS.limit] if FLAGS.limit else triples
    about: dict[str, Any] = {
        **{"data": FLAGS.data, "model": FLAGS.model or "none", "k": FLAGS.k, "seed": FLAGS.seed},
        **{"edges": edges, "early_quit": FLAGS.early_quit, "temperature": FLAGS.temperature},
        **{"p": FLAGS.p if FLAGS.model == "noisy" else None, "time_limit_s": FLAGS.time_limit},
        **{
            "dialect": FLAGS.dialect,
            "dafny": tool.dafny_version,
            "z3": tool.z3_version,
            "confinement": confinement(),
        },
    }
    results = Results(Path(FLAGS.out), about)
    for trouble in troubles:
        print(f"left out: {trouble}", file=sys.stderr)
    try:
        _run_all(triples, everything, tools, results, edges)
    except ExceptionGroup as group:
        raise _ended_early(group, len(results.rows)) from None
    _print(about, results.rows)


def _ended_early(group: ExceptionGroup, kept: int) -> Exception:
    """The user's sentence if the model or the verifier went away, else the first fault of our own."""
    why = group.exceptions[0]
    if isinstance(why, ExceptionGroup):
        return _ended_early(why, kept)
    what = "the model gave no answer: " if isinstance(why, CallFailed) else ""
    if what or isinstance(why, OSError):
        return ValueError(f"{what}{why}; {kept} finished triples are kept in {FLAGS.out}")
    return why


def _data() -> tuple[list[Triple], list[str]]:
    if FLAGS.data == "own":
        return own.right_triples() + own.wrong_triples(), []
    return public.load(FLAGS.data)


def _run_all(
    triples: list[Triple], everything: list[Triple], tools: Tools, results: Results, edges: list[Edge]
) -> None:
    accepted = sum(row["accepted"] for row in results.rows)
    done = sum(results.has(t) for t in triples)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{accepted} accepted", total=len(triples), completed=done)

        def show(row: Row) -> None:
            nonlocal accepted
            accepted += row["accepted"]
            progress.update(task, advance=1, description=f"{accepted} accepted")

        async def main() -> None:
            async with models.opened(FLAGS.model, FLAGS.url, _key(), FLAGS.p, everything) as model:
                await run_all(
                    triples,
                    replace(tools, model=model),
                    results,
                    k=FLAGS.k,
                    seed=FLAGS.seed,
                    edges=edges,
                    early_quit=FLAGS.early_quit,
                    parallel=FLAGS.parallel,
                    on_row=show,
                )

        asyncio.run(main())


# ---- show ---------------------------------------------------------------------------------------------
def _show(_: str) -> None:
    recipe = Path(FLAGS.out) / "run.json"
    if not recipe.exists():
        raise ValueError(f"{recipe} does not exist; make it with: python -m mixattn.evals clover run")
    about, rows = files.read_json(recipe), read_rows(Path(FLAGS.out) / "results.jsonl")
    _print(about, rows)
    if FLAGS.csv:
        kinds = [{"table": "by kind", "row": line.pop("kind"), **line} for line in tables.by_kind(rows)]
        parts = [{"table": "ablation", "row": line.pop("edges"), **line} for line in _ablation(about, rows)]
        about["data"] = "own" if about["data"] == "own" else "a checkout of CloverBench"
        ledger.write_csv(FLAGS.csv, kinds + parts, **about, device=ledger.processor())


def _ablation(about: dict[str, Any], rows: list[Row]) -> list[dict[str, Any]]:
    """Empty for a run that did not make every check it could leave out."""
    return [] if about["early_quit"] or len(about["edges"]) < 2 else tables.ablation(rows)


def _print(about: dict[str, Any], rows: list[Row]) -> None:
    kinds = tables.by_kind(rows)
    parts = _ablation(about, rows)
    if FLAGS.json:
        print(json.dumps({"run": about, "triples": len(rows), "by_kind": kinds, "ablation": parts}))
        return
    scripted = " (scripted: measures the checks, not a language model)" * (
        about["model"] in models.scripted.NAMES
    )
    print(f"{about['data']}, model {about['model']}{scripted}, k={about['k']}, dafny {about['dafny']}\n")
    print(tables.plain(kinds))
    if parts:
        print(f"\nAccepted when only some checks count\n{tables.plain(parts)}")
