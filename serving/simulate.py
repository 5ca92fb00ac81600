"""Fair scheduling in virtual time: the papers' experiments, or any workload.

python -m serving.simulate --config=configs/fair_vtc.py:E1
python -m serving.simulate --config=configs/moe_lightning.py          offloaded mixtures: schedules compared
python -m serving.simulate --trace=requests.jsonl --policy=dlpm --memory_tok=20000 --json
python -m serving.simulate --suite=fairness     every experiment, into results/fairness (minutes)
python -m serving.simulate --suite=overhead     cost of a decision, up to 10^6 waiting (minutes)
python -m serving.simulate --draw=E8 --out=.    a picture of an experiment, E8.png

A trace is JSON lines:
{"id", "client", "arrival_s", "prompt": [ids] | "prompt_len" [+ "prefix": [[key, length], ..]],
"output_len", "max_output"?, "weight"?}. Prefixes of one key share their tokens.
"""

import ast
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mixattn.tools import cli, files
from serving import fair
from serving.fair import metrics
from serving.fair.metrics import Event
from serving.offload.commands import simulate as offload
from serving.offload.experiment import OffloadExperiment
from serving.sim import fit
from serving.sim.experiment import FairnessExperiment, PolicyOutcome, PolicyRun, SimulatedEngine, run
from serving.sim.suites import fairness, overhead
from serving.sim.workload import read_trace

TABLE = "results/fairness"

cli.define_config()
_TRACE = flags.DEFINE_string("trace", None, "A workload as JSON lines, in place of --config.")
_POLICY = flags.DEFINE_string("policy", "vtc", f"With --trace: one of {', '.join(fair.POLICIES)}.")
_OPTION = flags.DEFINE_multi_string("option", [], "With --trace: NAME=VALUE for the policy; may be repeated.")
_ADMISSION = flags.DEFINE_string("admission", "reserve", "With --trace: reserve, peak or optimistic.")
_MEMORY = flags.DEFINE_integer("memory_tok", 10_000, "With --trace: tokens of KV memory.")
_PAGE = flags.DEFINE_integer(
    "page_tok", 16, "With --trace: page size of the prefix cache in tokens; 0 for none."
)
_EVENTS = flags.DEFINE_string("events", None, "Write the event log of the last run to this file.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")
_SUITE = flags.DEFINE_enum(
    "suite", None, ["fairness", "overhead"], "Run a suite and update its table in --out."
)
_FIT = flags.DEFINE_string("fit", None, "Fit the step cost model to an engine's event log and print it.")
_ONLY = flags.DEFINE_list(
    "only", [], "With --suite: only these experiments, e.g. E1,E13; of overhead, E19 or E19-simulator."
)
_DRAW = flags.DEFINE_list("draw", [], "Run these experiments, e.g. E8, and draw each into --out.")
_OUT = flags.DEFINE_string(
    "out", None, f"Folder of the table of a suite ({TABLE}) or of pictures (the present one)."
)


def main() -> None:
    given = [name for name in ("trace", "suite", "draw", "fit") if getattr(flags.FLAGS, name)]
    given += ["config"] if flags.FLAGS.config is not None else []
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "none of them"
        raise ValueError(f"give one of --config, --trace, --suite, --draw and --fit; given: {found}")
    if _FIT.value:
        print(json.dumps(fit.fit_step_cost(metrics.read(_FIT.value)).report()))
    elif _SUITE.value == "fairness":
        fairness.run_suite(Path(_OUT.value or TABLE), only=_ONLY.value, clock=time.perf_counter)
    elif _DRAW.value:
        fairness.draw_suite(Path(_OUT.value or "."), only=_DRAW.value, clock=time.perf_counter)
    elif _SUITE.value == "overhead":
        out = Path(_OUT.value or TABLE)
        overhead.run_suite(out, only=_ONLY.value, clock=time.perf_counter, cpu=time.process_time)
    else:
        experiment = _trace_experiment(_TRACE.value) if _TRACE.value else cli.config()
        if isinstance(experiment, OffloadExperiment):
            offload.run_experiment(experiment, as_json=_JSON.value)
            return
        if not isinstance(experiment, FairnessExperiment):
            raise ValueError(f"--config gives {type(experiment).__name__}, not an experiment of this command")
        show(experiment, list(_run_all(experiment)))


def _trace_experiment(path: str) -> FairnessExperiment:
    """The experiment described by --trace and its flags.

    Raises:
      ValueError: a bad line of the file, or an unknown policy or option.
    """
    trace = read_trace(path)
    options: dict[str, Any] = {}
    for text in _OPTION.value:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option={text} is not NAME=VALUE")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        options[name] = value
    if any(weight != 1 for weight in trace.weights.values()):
        options.setdefault("weights", trace.weights)
    page_tok = 0 if _ADMISSION.value == "peak" else _PAGE.value
    server = SimulatedEngine(
        memory_tok=_MEMORY.value,
        admission=_ADMISSION.value,
        page_tok=page_tok,
        admit_every=1,
    )
    experiment = FairnessExperiment(
        id=Path(path).stem,
        title=f"{len(trace.requests)} requests of {len(trace.weights)} clients",
        requests=lambda seed: list(trace.requests),
        server=server,
        runs=(PolicyRun(_POLICY.value, options),),
        demand_s=max(60.0, trace.requests[-1].arrival_s) + 30.0,
    )
    cli.check_tree(experiment)
    known = fair.options(_POLICY.value)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"policy {_POLICY.value!r} has no option {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return experiment


def _run_all(experiment: FairnessExperiment) -> Iterator[PolicyOutcome]:
    requests = experiment.workload()
    console = Console(stderr=True)
    with Progress(console=console, disable=_JSON.value, transient=True) as progress, _event_log() as log:
        for policy_run in experiment.runs:
            task = progress.add_task(policy_run.name, total=experiment.demand_s)

            def tick(now_s: float, task: Any = task) -> None:
                progress.update(task, completed=now_s)

            last = policy_run is experiment.runs[-1]
            yield run(
                experiment,
                policy_run,
                requests=requests,
                log=log if last else None,
                clock=time.perf_counter,
                progress=tick,
            )
            progress.remove_task(task)


@contextlib.contextmanager
def _event_log() -> Iterator[Callable[[Event], None] | None]:
    """A writer of --events, which is written whole or not at all; None without the flag."""
    if _EVENTS.value is None:
        yield None
        return
    with files.whole(Path(_EVENTS.value)) as partial, partial.open("w") as lines:
        yield lambda event: print(json.dumps(event), file=lines)


COLUMNS = {
    "run": "policy",
    "finished": "finished",
    "tok_per_s": "tok/s",
    "avg_diff": "service\ndiff. avg",
    "max_diff": "max",
    "accumulated_gap": "accumulated\ngap",
    "backlogged_gap": "gap while\nboth wait",
    "bound": "proven\nbound",
    "jain_service": "Jain",
    "hit_rate": "hit rate",
    "ttft_mean_s": "TTFT\nmean s",
    "ttft_p99_s": "p99 s",
    "decision_us": "decision\nus",
}


def show(experiment: FairnessExperiment, outcomes: list[PolicyOutcome]) -> None:
    """Prints one table of runs and one of clients, or a JSON object with both."""
    rows = [outcome.row() for outcome in outcomes]
    clients = [line for outcome in outcomes for line in outcome.client_rows()]
    if _JSON.value:
        paper = experiment.paper or None
        print(
            json.dumps(
                {"id": experiment.id, "runs": _plain(rows), "clients": _plain(clients), "paper": paper}
            )
        )
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_table(f"{experiment.id}: {experiment.title}", rows, COLUMNS))
    names = {name: name.replace("_", " ") for name in clients[0]} if clients else {}
    if len(clients) <= 40:
        console.print(_table("Clients (service in weighted tokens)", clients, names))


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with nan, which JSON lacks, as None."""
    return [{k: None if isinstance(v, float) and v != v else v for k, v in row.items()} for row in rows]


def _table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    table = Table(title=title)
    for column in columns.values():
        table.add_column(column, justify="left" if column in ("policy", "run", "client") else "right")
    for row in rows:
        table.add_row(*(_text(row[name]) for name in columns))
    return table


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    cli.run(main)
