"""Fair scheduling in virtual time: the papers' experiments, or any trace of requests.

python -m serving.simulate --config=configs/fair_vtc.py:E1
python -m serving.simulate --config=configs/moe_lightning.py    offloaded mixtures: schedules compared
python -m serving.simulate --config=configs/fair_churn.py:E21 --seeds=5
python -m serving.simulate --trace=requests.jsonl --policies=vtc,dlpm --memory_tok=20000 --json
python -m serving.simulate --trace=AzureLLMInferenceTrace_code.csv --format=azure --clients=zipf:20 --rate=4
python -m serving.simulate --trace=mooncake.jsonl --format=mooncake --workers=4 --router=d2lpm --policies=dlpm
python -m serving.simulate --examples=DIR       a small synthetic file of every trace format
python -m serving.simulate --suite=fairness     every experiment, into results/fairness (minutes)
python -m serving.simulate --suite=paper        figures beside the papers' over 5 seeds (a quarter of an hour)
python -m serving.simulate --suite=overhead     cost of a decision, up to 10^6 waiting (minutes)
python -m serving.simulate --suite=scale --against=OLDER_CHECKOUT    time and memory beside an older version
python -m serving.simulate --decisions=FILE     repeats the decisions of a cluster's router from its log
python -m serving.simulate --draw=E8 --out=.    a picture of an experiment, E8.svg

Formats: own (JSON lines), azure, burstgpt (CSV), mooncake (JSON lines), sharegpt (JSON); their fields are in
serving/sim/traces/FORMATS.md.
"""

import contextlib
import dataclasses
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from mixattn.tools import cli, collector, files
from mixattn.tools.progress import ProgressLines
from pallas_kernels import results
from serving import fair
from serving.cluster import decisions
from serving.fair import metrics
from serving.fair.metrics import Event
from serving.fair.service_report import LatencyTarget
from serving.offload.commands import simulate as offload
from serving.offload.experiment import OffloadExperiment
from serving.sim import fit, seeds
from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine
from serving.sim.suites import fairness, overhead, paper, scale, tables
from serving.sim.trace_experiment import parse_cost, parse_options, policy_runs, trace_experiment
from serving.sim.traces import READERS, TraceOptions, examples, read_trace

TABLE = "results/fairness"

cli.define_config()
_TRACE = flags.DEFINE_string("trace", None, "A file of requests, in place of --config.")
_FORMAT = flags.DEFINE_enum("format", "own", list(READERS), "With --trace: what the file is.")
_POLICIES = flags.DEFINE_list(
    "policies",
    ["vtc"],
    "With --trace: policies to compare, each with options of its own, as in vtc,vtc:lift=fluid; known: "
    + ", ".join(fair.POLICIES),
)
_OPTION = flags.DEFINE_multi_string(
    "option", [], "With --trace: NAME=VALUE for all policies that have it; may be repeated."
)
_CLIENTS = flags.DEFINE_string(
    "clients",
    "",
    "With --trace: column, column:NAME, hash:N or zipf:N; default: the format's column, or hash:8.",
)
_RATE = flags.DEFINE_float("rate", None, "With --trace: requests (or sessions) per second, by scaling time.")
_THINK = flags.DEFINE_float(
    "think_s", 10.0, "With --trace: mean seconds between turns where the file has none."
)
_LIMIT = flags.DEFINE_integer("limit", None, "With --trace: read at most this many rows.", lower_bound=1)
_OVERSIZE = flags.DEFINE_enum(
    "oversize", "drop", ["drop", "clip"], "With --trace: what becomes of requests larger than the memory."
)
_ADMISSION = flags.DEFINE_string("admission", "reserve", "With --trace: reserve, peak or optimistic.")
_MEMORY = flags.DEFINE_integer("memory_tok", 10_000, "With --trace: tokens of KV memory of a worker.")
_PAGE = flags.DEFINE_integer(
    "page_tok", 16, "With --trace: page size of the prefix cache in tokens; 0 for none."
)
_WORKERS = flags.DEFINE_integer("workers", 1, "With --trace: workers behind a router.", lower_bound=1)
_ROUTER = flags.DEFINE_string("router", "round_robin", f"With --trace: one of {', '.join(fair.ROUTERS)}.")
_ROUTER_OPTION = flags.DEFINE_multi_string("router_option", [], "With --trace: NAME=VALUE for the router.")
_COST = flags.DEFINE_string(
    "cost",
    None,
    "With --trace: step costs, prefill_s=..,step_s=..,row_s=..,context_s=.., or a file as --fit prints it.",
)
_TTFT = flags.DEFINE_float("ttft_slo_s", None, "With --trace: target of the time to first token.")
_TPOT = flags.DEFINE_float("tpot_slo_s", None, "With --trace: target of the time per output token.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Run so many seeds and print 95 % intervals.", lower_bound=1)
_CSV = flags.DEFINE_string("csv", None, "Also write the figures of every policy to this file.")
_EVENTS = flags.DEFINE_string("events", None, "Write the event log of the last policy (seed 0) to this file.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")
_EXAMPLES = flags.DEFINE_string("examples", None, "Write a small synthetic trace of every format here.")
_SUITE = flags.DEFINE_enum(
    "suite", None, ["fairness", "paper", "overhead", "scale"], "Run a suite, into --out."
)
_AGAINST = flags.DEFINE_string("against", None, "With --suite=scale: an older checkout to compare with.")
_FIT = flags.DEFINE_string("fit", None, "Fit the step cost model to an engine's event log and print it.")
_ONLY = flags.DEFINE_list(
    "only", [], "With --suite: only these experiments, e.g. E1,E13; of overhead, E19 or E19-simulator."
)
_DECISIONS = flags.DEFINE_string(
    "decisions", None, "A --decision_log of serving.cluster: repeat it; exit status 1 if a decision differs."
)
_DRAW = flags.DEFINE_list("draw", [], "Run these experiments, e.g. E8, and draw each into --out.")
_OUT = flags.DEFINE_string(
    "out", None, f"Folder of the table of a suite ({TABLE}) or of pictures (the present one)."
)


def main() -> None:
    collector.collect_rarely()
    given = [
        name
        for name in ("trace", "suite", "draw", "fit", "examples", "decisions")
        if getattr(flags.FLAGS, name)
    ]
    given += ["config"] if flags.FLAGS.config is not None else []
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none of them"
        raise ValueError(
            "give one of --config, --trace, --suite, --draw, --fit, --examples and --decisions; "
            f"given: {found}"
        )
    if _FIT.value:
        print(json.dumps(fit.fit_step_cost(metrics.read(_FIT.value)).report()))
    elif _EXAMPLES.value:
        Path(_EXAMPLES.value).mkdir(parents=True, exist_ok=True)
        for name in examples.FILES:
            with files.whole(Path(_EXAMPLES.value) / name) as partial:
                partial.write_text("".join(f"{line}\n" for line in examples.lines(name)))
    elif _DECISIONS.value:
        _replay(Path(_DECISIONS.value))
    elif _DRAW.value:
        fairness.draw_suite(
            Path(_OUT.value or "."), only=_DRAW.value, clock=time.perf_counter, seeds=_SEEDS.value
        )
    elif _SUITE.value:
        _run_suite(Path(_OUT.value or TABLE))
    else:
        notes: list[str] = []
        experiment = _trace_experiment(notes) if _TRACE.value else cli.config()
        if isinstance(experiment, OffloadExperiment):
            offload.run_experiment(experiment, as_json=_JSON.value)
            return
        if not isinstance(experiment, FairnessExperiment):
            raise ValueError(f"--config gives {type(experiment).__name__}, not an experiment of this command")
        _compare(experiment, notes)


def _replay(log: Path) -> None:
    with log.open() as lines:
        found = decisions.replay(lines)
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        differs = f"the last differs: {found.difference}" if found.difference else "none differs"
        print(f"{found.router}: {found.decisions} decisions among {found.events} events; {differs}")
    if found.difference:
        sys.exit(1)


def _run_suite(out: Path) -> None:
    match _SUITE.value:
        case "fairness":
            fairness.run_suite(out, only=_ONLY.value, clock=time.perf_counter)
        case "paper":
            paper.run_suite(out, only=_ONLY.value, seeds=max(2, _SEEDS.value), clock=time.perf_counter)
        case "overhead":
            overhead.run_suite(out, only=_ONLY.value, clock=time.perf_counter, cpu=time.process_time)
        case "scale":
            against = Path(_AGAINST.value) if _AGAINST.value else None
            scale.run_suite(out, against=against, only=_ONLY.value)


def _trace_experiment(notes: list[str]) -> FairnessExperiment:
    """The experiment described by --trace and its flags; adds to `notes` what a reader must know.

    Raises:
      ValueError: a bad row of the file, or an unknown policy, router or option.
    """
    target = LatencyTarget(_TTFT.value, _TPOT.value)
    server = SimulatedEngine(
        memory_tok=_MEMORY.value,
        admission=_ADMISSION.value,
        page_tok=0 if _ADMISSION.value == "peak" else _PAGE.value,
        admit_every=1,
        workers=_WORKERS.value,
        router=_ROUTER.value,
        router_options=parse_options(_ROUTER_OPTION.value),
        cost=parse_cost(_COST.value) if _COST.value else StepCost(),
    )
    server.check()
    policy_runs(_POLICIES.value, parse_options(_OPTION.value), {})  # before a large file is read
    if server.workers > 1:
        fair.make(server.router, **server.router_options)
    options = TraceOptions(
        *(_CLIENTS.value, _RATE.value, _OVERSIZE.value, server.memory_tok, _THINK.value, _LIMIT.value)
    )
    trace = read_trace(_TRACE.value, _FORMAT.value, options)
    runs, blind = policy_runs(_POLICIES.value, parse_options(_OPTION.value), trace.weights)
    if trace.weights and server.workers > 1 and "weights" in fair.options(server.router):
        server.router_options.setdefault("weights", trace.weights)
    experiment = trace_experiment(_TRACE.value, _FORMAT.value, options, server, runs, target, trace)
    cli.check_tree(experiment)
    notes.append(trace.account())
    if blind:
        notes.append(f"{', '.join(blind)} cannot share by weight and ran without; the figures are by weight")
    if _SEEDS.value > 1 and not trace.random:
        notes.append("nothing in this trace is left to chance: all seeds give the same workload")
    if experiment.groups:
        notes.append(
            f"measured by program: {len(experiment.groups)} clients are "
            f"{len(set(experiment.groups.values()))} programs"
        )
    if experiment.demand_s < 60:
        notes.append(
            f"requests arrive for {experiment.demand_s:.3g} s: too short for figures that leave out "
            "the first 30 s and the last 29 s"
        )
    return experiment


def _compare(experiment: FairnessExperiment, notes: list[str]) -> None:
    """Runs all policies on all seeds and shows them."""
    began_s = time.process_time()
    by_run: dict[str, list[dict[str, Any]]] = {run.name: [] for run in experiment.runs}
    clients: list[dict[str, Any]] = []
    last = experiment.runs[-1]
    lines = ProgressLines(quiet=_JSON.value, transient=True, console=Console(stderr=True, highlight=False))
    with lines, _event_log() as log:

        def prepare(policy_run: PolicyRun, seed: int) -> dict[str, Any]:
            line = lines.add(experiment.demand_s, policy_run.name)
            told_s = -math.inf

            def tick(now_s: float) -> None:
                nonlocal told_s
                if now_s - told_s < experiment.demand_s / 1000:
                    return  # there are millions of steps
                told_s = now_s
                done_s = min(now_s, experiment.demand_s * 0.999)
                line.update(done_s, f"{policy_run.name}, seed {seed}: {now_s:,.0f} s of virtual time")

            events = log if policy_run is last and seed == experiment.seed else None
            return {"progress": tick, "log": events, "clock": time.perf_counter}

        first = experiment.seed
        for seed, outcome in seeds.outcomes(experiment, range(first, first + _SEEDS.value), on_run=prepare):
            by_run[outcome.run.name].append(outcome.row())
            if seed == first:
                clients += outcome.client_rows()
    if _CSV.value:
        took = f"{time.process_time() - began_s:,.0f} s of CPU time, at most {_peak_gib():.2f} GiB"
        what = {"experiment": experiment.id, "title": experiment.title, "notes": "; ".join(notes)}
        what |= {"took": took, "load": f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores at its end"}
        results.write_csv(_CSV.value, seeds.table_rows(by_run), quiet=True, **what, device=results.VIRTUAL)
    if _JSON.value:
        print(json.dumps(_plain(_report(experiment, by_run, clients, notes))))
        return
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    for note in notes:
        console.print(note, markup=False)
    tables.show(console, f"{experiment.id}: {experiment.title}", by_run, clients)


def _peak_gib() -> float:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def _report(
    experiment: FairnessExperiment,
    by_run: dict[str, list[dict[str, Any]]],
    clients: list[dict[str, Any]],
    notes: list[str],
) -> dict[str, Any]:
    """The object of --json: figures of the first seed, and intervals if there are several seeds."""
    report = {
        "id": experiment.id,
        "notes": notes,
        "runs": [rows[0] for rows in by_run.values()],
        "clients": clients,
        "paper": experiment.paper or None,
    }
    if _SEEDS.value > 1:
        report["intervals"] = seeds.table_rows(by_run)
    return report


@contextlib.contextmanager
def _event_log() -> Iterator[Callable[[Event], None] | None]:
    """A writer of --events, which is written whole or not at all; None without the flag."""
    if _EVENTS.value is None:
        yield None
        return
    with files.whole(Path(_EVENTS.value)) as partial, partial.open("w") as lines:
        yield lambda event: print(json.dumps(event), file=lines)


def _plain(value: Any) -> Any:
    """The same without nan, which JSON lacks: None."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    cli.run(main)
