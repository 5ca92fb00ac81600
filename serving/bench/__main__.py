"""Benchmarks of the engine, mostly ratios measured in one run, into results/serving/.

    python -m serving.bench --only=quick                       the first eight, about two minutes on one core
    python -m serving.bench --only=host,decode --json
    python -m serving.bench                              all that need no other environment, ten minutes
    python -m serving.bench --only=offline --scale=1.0         the offline protocol at its full lengths

A figure may have a goal; column `met` says whether it is met. Each part writes its own file. Timings need an
idle core (`taskset -c 3`, NPROC=1), ratios less so; counts are the same on every machine.

memory     concurrent requests in one KV budget, by the page manager, beside the byte formula        1 s
host       host milliseconds per step at 64 decoding rows: scheduler, tree and tables; and the whole host part
decode     output tokens/s of the engine over the bare compiled decode program of the same shapes
pages      a decode step over pages beside the same step over contiguous slots
draw       top-k and top-p without sorting, beside the sort, at vocabularies of 32k and 128k
prefix     time to first token of a prompt whose first 1024 tokens are cached, over that of a cold one
keep       a decode step, prefill, settling, hits and requests at once with slabs beside the full cache  4 min
soak       10,000 tiny requests, cancelled at random, in scarce memory: all end once, nothing leaks
soak_keep  the same with slabs: eviction, two scorers, snapshots
shared     requests of 16 groups that share a system prompt; prefix cache on and off
clients    a flooding client and a modest one, under fcfs and vtc
start      seconds to the first token, with an empty and with a warm compilation cache              1 min
offline    256 requests, inputs and outputs uniform in 100..1024 tokens times --scale; overlap or not
segments   30 layers in segments beside one program: compile seconds, decode and prefill            3 min
pays       one KV budget, long prompts, end to end: MixAttention over standard, beside the formula   4 min

Parts that need more run only when they are named:

http       the server beside its engine, on one core and on two: throughput, first token, event loop, a
           thousand streams, slow clients; each figure is written at once  (`taskset`, extra serve)    4 min
ingress    CPU of a cluster's ingress, without processes: a dispatch, a decision, a token    (extra serve)
cluster    one worker and two behind an ingress beside one server    (`taskset`, extra serve)    3 min
cluster_live  four routers on three real workers, beside the simulator    (`taskset`, extra serve)    5 min
cluster_loss  how long streams are silent when a worker is killed or stops    (`taskset`, extra serve)
transformers  output tokens/s over its static and its continuous batching     (.venv-parity, `make parity`)
llama         a decode step beside llama.cpp's     (.venv-llama with llama-cpp-python and gguf)
real          a real model beside OpenVINO GenAI, llama.cpp, transformers and vLLM: see `serving.bench.real`
start_model   start of a real model, cold and with programs kept    (models/smollm2, `make model`)
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence

from absl import flags, logging
from rich.console import Console
from rich.table import Table

from mixattn.tools import cli
from pallas_kernels import results
from serving.bench import (
    Row,
    Size,
    budget,
    cluster,
    cluster_live,
    cluster_loss,
    deep,
    draw,
    keep,
    latency,
    load,
    over_http,
    pages,
    peers,
    soak,
    step,
)
from serving.bench.real import part as real_part

_ONLY = flags.DEFINE_list(
    "only", [], "Parts to run, or `quick`; by default all that need no other environment."
)
_OUT = flags.DEFINE_string("out", "results/serving", "Folder for the figures, one file per part.")
_SCALE = flags.DEFINE_float(
    "scale", 0.125, "Factor on the lengths of the offline protocol.", lower_bound=0.01
)
_REQUESTS = flags.DEFINE_integer(
    "requests", 256, "Number of requests of the offline protocol.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Interleaved rounds of what is compared.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print the figures as JSON instead of a table.")

PARTS: dict[str, Callable[[Size], Iterable[Row]]] = {
    "memory": budget.memory,
    "host": step.host,
    "decode": step.decode,
    "pages": pages.pages,
    "draw": draw.draw,
    "prefix": latency.prefix,
    "soak": soak.run,
    "shared": load.shared,
    "keep": keep.keep,
    "soak_keep": soak.evicting,
    "clients": load.clients,
    "start": latency.start,
    "segments": deep.segments,
    "offline": load.offline,
    "pays": budget.pays,
    "http": over_http.http_,
    "ingress": cluster.ingress,
    "cluster": cluster.cluster,
    "cluster_live": cluster_live.cluster_live,
    "cluster_loss": cluster_loss.cluster_loss,
    "transformers": peers.transformers,
    "llama": peers.llama,
    "start_model": deep.start_model,
    "real": real_part.real,
}
QUICK = list(PARTS)[:8]
OTHER_ENVIRONMENT = {
    "http",
    "ingress",
    "cluster",
    "cluster_live",
    "cluster_loss",
    "transformers",
    "llama",
    "start_model",
    "real",
}


def main() -> None:
    named = [name for asked in _ONLY.value for name in (QUICK if asked == "quick" else [asked])]
    if unknown := sorted(set(named) - set(PARTS)):
        raise ValueError(f"--only names {', '.join(unknown)}; there are {', '.join(PARTS)} and quick")
    size = Size(_SCALE.value, _REQUESTS.value, _REPEATS.value)
    console = Console(stderr=True)
    rows: list[Row] = []
    for name in named or [p for p in PARTS if p not in OTHER_ENVIRONMENT]:
        console.print(f"{name} ...")
        rows += _measured(name, size, console)
    if _JSON.value:
        print(json.dumps(rows))
        return
    _print(rows)


def _measured(name: str, size: Size, console: Console) -> list[Row]:
    """A part's rows. Those of a part that yields them one by one are shown and on disk at once."""
    command = f"python -m serving.bench --only={name} --scale={size.scale} --requests={size.requests}"
    path, given, rows = f"{_OUT.value}/{name}.csv", PARTS[name](size), list[Row]()
    for found in given:
        rows.append(found)
        if not isinstance(given, list):
            results.write_csv(path, rows, quiet=True, about=command, seed=0, unfinished=len(rows))
            console.print(f"  {found['figure']}: {_number(found['value'])} {found['unit']}", highlight=False)
    results.write_csv(path, rows, about=command, seed=0)
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def _print(rows: Sequence[Row]) -> None:
    table = Table("part", "figure", "value", "unit", "goal", "met", "detail")
    for r in rows:
        table.add_row(
            r["part"], r["figure"], _number(r["value"]), r["unit"], r["goal"], r["met"], r["detail"]
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    if parts := [arg for arg in sys.argv[1:] if arg in PARTS]:  # `serving.bench keep` is --only=keep
        sys.argv[1:] = [f"--only={','.join(parts)}", *(arg for arg in sys.argv[1:] if arg not in PARTS)]
    logging.set_verbosity(logging.ERROR)
    cli.run(main)
