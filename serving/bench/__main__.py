"""What the engine costs and gains, as ratios measured in one run, into results/serving/.

    python -m serving.bench                                    everything; some minutes on one core
    python -m serving.bench --only=host,decode --json
    python -m serving.bench --only=offline --scale=1.0         the offline protocol at its full lengths

host       host milliseconds a step at 64 decoding rows: scheduler, tree and tables; and the whole host part
decode     output tokens/s of the engine over the bare compiled decode program of the same shapes
pages      a decode step over pages beside the same step over contiguous slots
draw       top-k and top-p without sorting, beside the sort, at vocabularies of 32k and 128k
prefix     time to first token of a prompt whose first 1024 tokens are cached, over a cold one's
start      seconds to the first token, with an empty compilation cache and with a filled one
offline    256 requests, inputs and outputs uniform in 100..1024 tokens times --scale; overlap on and off
shared     the same with 16 groups that share a system prompt; prefix cache on and off
clients    a client that floods and a modest one, under fcfs and vtc
memory     requests at once in one KV budget: MA-Offset over standard, beside the byte formula
pays       one KV budget, long prompts, really run: MA-Offset over standard, requests at once and tokens/s
soak       10,000 tiny requests, cancelled at random, in scarce memory: all end once, nothing is left over

Two parts need environments of their own and run only when they are named:

transformers  output tokens/s over its static and its continuous batching     (.venv-parity, `make parity`)
llama         a decode step beside llama.cpp's     (.venv-llama with llama-cpp-python and gguf)
"""

import json
from collections.abc import Callable

from absl import flags, logging
from rich.console import Console
from rich.table import Table

from mixattn import cli
from pallas_kernels import results
from serving.bench import Row, Size, budget, draw, latency, load, pages, peers, soak, step

_ONLY = flags.DEFINE_list("only", [], "Parts to run; all that need nothing else if empty.")
_OUT = flags.DEFINE_string("out", "results/serving", "Folder of the figures, one file a part.")
_SCALE = flags.DEFINE_float(
    "scale", 0.125, "Factor on the lengths of the offline protocol.", lower_bound=0.01
)
_REQUESTS = flags.DEFINE_integer("requests", 256, "Requests of the offline protocol.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats of what is timed in turns.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print the figures as JSON instead of a table.")

PARTS: dict[str, Callable[[Size], list[Row]]] = {
    "host": step.host,
    "decode": step.decode,
    "pages": pages.pages,
    "draw": draw.draw,
    "prefix": latency.prefix,
    "start": latency.start,
    "offline": load.offline,
    "shared": load.shared,
    "clients": load.clients,
    "memory": budget.memory,
    "pays": budget.pays,
    "soak": soak.run,
    "transformers": peers.transformers,
    "llama": peers.llama,
}
ELSEWHERE = {"transformers", "llama"}  # need other environments


def main() -> None:
    if unknown := sorted(set(_ONLY.value) - set(PARTS)):
        raise ValueError(f"--only names {', '.join(unknown)}; there are {', '.join(PARTS)}")
    size = Size(_SCALE.value, _REQUESTS.value, _REPEATS.value)
    console = Console(stderr=True)
    rows: list[Row] = []
    for name in _ONLY.value or [p for p in PARTS if p not in ELSEWHERE]:
        console.print(f"{name} ...")
        rows += (part := PARTS[name](size))
        command = f"python -m serving.bench --only={name} --scale={size.scale} --requests={size.requests}"
        results.write_csv(f"{_OUT.value}/{name}.csv", part, about=command, seed=0)
    if _JSON.value:
        print(json.dumps(rows))
        return
    table = Table("part", "figure", "value", "unit", "detail")
    for r in rows:
        table.add_row(r["part"], r["figure"], f"{r['value']:,.4g}", r["unit"], r["detail"])
    Console().print(table)


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    cli.run(main)
