"""What the engine costs and gains, as ratios measured in one run, interleaved, into results/serving/.

    python -m serving.bench                                    everything; some minutes on one core
    python -m serving.bench --only=host,decode --json
    python -m serving.bench --scale=1.0                        the offline protocol at its full lengths

host       host milliseconds a step at 64 decoding rows: scheduler, tree and tables; and the whole host part
decode     output tokens/s of the engine over the bare compiled decode program of the same shapes
prefix     time to first token of a prompt whose first 1024 tokens are cached, over a cold one's
start      seconds to the first token, with an empty compilation cache and with a filled one
offline    256 requests, inputs and outputs uniform in 100..1024 tokens times --scale; overlap on and off
shared     the same with 16 groups that share a system prompt; prefix cache on and off
clients    a client that floods and a modest one, under fcfs and vtc
memory     requests at once in one KV budget: MA-Offset over standard, beside the byte formula
"""

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from absl import flags, logging
from rich.console import Console
from rich.table import Table

from mixattn import cli
from mixattn.spec import ModelConfig, kv_bytes
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling

_ONLY = flags.DEFINE_list("only", [], "Parts to run; all if empty.")
_OUT = flags.DEFINE_string("out", "results/serving", "Folder of the figures, one file a part.")
_SCALE = flags.DEFINE_float(
    "scale", 0.125, "Factor on the lengths of the offline protocol.", lower_bound=0.01
)
_REQUESTS = flags.DEFINE_integer("requests", 256, "Requests of the offline protocol.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print the figures as JSON instead of a table.")

MODEL = ModelConfig(
    n_layers=6,
    d_model=128,
    n_heads=2,
    n_kv_heads=1,
    head_dim=64,
    d_ff=512,
    vocab_size=2048,
    kv_wiring="0s_0s_2_3s_3s_2",
    window=64,
)

type Row = dict[str, Any]


def row(part: str, figure: str, value: float, unit: str, detail: str = "") -> Row:
    return {"part": part, "figure": figure, "value": round(value, 4), "unit": unit, "detail": detail}


def network(config: ModelConfig = MODEL):
    from flax import nnx

    from mixattn.model import Transformer

    return Transformer(config, rngs=nnx.Rngs(0))


def prompt(rng: random.Random, length: int, vocab: int = MODEL.vocab_size) -> list[int]:
    return [rng.randrange(vocab) for _ in range(length)]


# ---- host ----


def host() -> list[Row]:
    """64 rows decode one step a call. Pure: the scheduler over real pages, a device that answers at once."""
    from serving.engine import Engine

    config = EngineConfig(
        max_slots=64,
        max_request_tok=256,
        prefill_rows=(4,),
        limits=Limits(chunk_tok=64, step_tok=256, decode_steps=(1,)),
    )
    engine = Engine(network(dataclasses.replace(MODEL, d_model=32, d_ff=32)), config)
    rng = random.Random(0)
    for _ in range(64):
        engine.submit(Request(client="a", prompt_ids=prompt(rng, 64), sampling=Sampling(max_tokens=190)))
    while engine.scheduler.waiting or any(e.prefilling for e in engine.scheduler.running.values()):
        engine.step()
    decide: list[float] = []
    rest: list[float] = []
    scheduler = engine.scheduler
    timed = _Timed(scheduler)
    for _ in range(120):
        before = engine.stats().host_s
        timed.seconds = 0.0
        engine.step()
        decide.append(timed.seconds)
        rest.append(engine.stats().host_s - before)
    what = "scheduler, tree and tables a step at 64 rows"
    return [
        row("host", f"{what}: median", 1e3 * median(decide), "ms CPU", "goal < 0.3"),
        row("host", f"{what}: least", 1e3 * min(decide), "ms CPU"),
        row("host", "whole host part a step, wall: median", 1e3 * median(rest), "ms", "dispatch, deltas too"),
        row("host", "whole host part a step, wall: least", 1e3 * min(rest), "ms"),
    ]


class _Timed:
    """Sums the CPU time of this thread in a scheduler's plan and commit: what others run does not count."""

    def __init__(self, scheduler):
        self.seconds = 0.0
        for name in ("plan", "commit"):
            setattr(scheduler, name, self._wrap(getattr(scheduler, name)))

    def _wrap(self, run: Callable) -> Callable:
        def timed(*args):
            began = time.thread_time()
            try:
                return run(*args)
            finally:
                self.seconds += time.thread_time() - began

        return timed


# ---- decode ----


def decode() -> list[Row]:
    """32 rows of 8 steps a call: the engine's steps and the bare program on the same state, in turn."""
    import numpy as np

    from serving.engine import Engine
    from serving.programs import PLAIN

    rows = 32
    limits = Limits(chunk_tok=64, step_tok=256, decode_steps=(8, 1))
    engine = Engine(
        network(), EngineConfig(max_slots=rows, max_request_tok=768, prefill_rows=(4,), limits=limits)
    )
    rng = random.Random(0)
    for _ in range(rows):
        engine.submit(Request(client="a", prompt_ids=prompt(rng, 64), sampling=Sampling(max_tokens=680)))
    while engine.stats().decode_rows < 3 * rows * 8:
        engine.step()
    whole, bare = [], []
    for _ in range(30):
        began = time.perf_counter()
        engine.step()
        whole.append(time.perf_counter() - began)
        tables = {k: t.copy() for k, t in zip(engine.kinds, engine.memory.tables)}
        left_B = np.full(rows, 8, np.int32)
        began = time.perf_counter()
        engine.state, drawn = engine.programs.decode(engine.state, tables, left_B, 8, PLAIN)
        np.asarray(drawn.token)
        bare.append(time.perf_counter() - began)
        # The bare call moved the rows on; put them back where the scheduler thinks they are.
        state = engine.state.rows
        back = dataclasses.replace(state, position_B=state.position_B - 8)
        engine.state = dataclasses.replace(engine.state, rows=back)
    tokens = rows * 8
    return [
        row("decode", "engine", tokens / median(whole), "tok/s", f"{rows} rows, 8 steps a call"),
        row("decode", "bare program", tokens / median(bare), "tok/s", "same shapes, same state"),
        row("decode", "engine over bare, medians", median(bare) / median(whole), "", "goal >= 0.85"),
        row("decode", "engine over bare, minima", min(bare) / min(whole), ""),
    ]


# ---- prefix ----


def prefix() -> list[Row]:
    from serving.engine import Engine

    limits = Limits(chunk_tok=256, step_tok=256, decode_steps=(1,))
    engine = Engine(network(), EngineConfig(max_request_tok=1280, prefill_rows=(1,), limits=limits))
    rng = random.Random(0)
    cold: list[float] = []
    hit: list[float] = []
    for _ in range(9):
        stem = prompt(rng, 1024)
        for seconds in (cold, hit):
            one = Request(client="a", prompt_ids=stem + prompt(rng, 16), sampling=Sampling(max_tokens=1))
            [output] = engine.run([one])
            seconds.append(output.first_token_s - output.arrival_s)
    return [
        row("prefix", "TTFT cold, 1040 tokens", 1e3 * median(cold), "ms"),
        row("prefix", "TTFT with 1024 tokens cached", 1e3 * median(hit), "ms"),
        row("prefix", "cached over cold", median(hit) / median(cold), "", "goal <= 0.30"),
    ]


# ---- start ----

_START = """
import time; began = time.perf_counter()
from serving import bench; print(bench.first_token() and time.perf_counter() - began)
"""


def first_token() -> bool:
    """Builds an engine of the demo's shapes and makes one token."""
    from serving.engine import Engine

    engine = Engine(
        network(), EngineConfig(num_pages=49, max_request_tok=144, limits=Limits(chunk_tok=64, step_tok=128))
    )
    [output] = engine.run([Request(client="a", prompt_ids=[1, 2, 3], sampling=Sampling(max_tokens=1))])
    return bool(output.output_ids)


def start() -> list[Row]:
    """Whole processes, imports included: twice with one fresh folder for compiled programs."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        seconds = []
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", _START], env=env, capture_output=True, text=True, check=True
            )
            seconds.append(float(done.stdout.split()[-1]))
    return [
        row("start", "process to first token, no compiled programs kept", seconds[0], "s", "goal < 20"),
        row("start", "the same with the compilation cache", seconds[1], "s", "goal < 5"),
    ]


# ---- throughput ----


def serve(
    part: str, name: str, requests: Sequence[Request], log: list | None = None, **more: Any
) -> tuple[list[Row], Any]:
    """Serves all at once; rates, and what the engine says of itself."""
    from serving.engine import Engine

    longest = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
    given: dict[str, Any] = {
        "max_slots": 16,
        "prefill_rows": (4,),
        "limits": Limits(chunk_tok=64, step_tok=256),
        **more,
    }
    hear = log.append if log is not None else (lambda event: None)
    programs = _shared.get((longest, bool(more.get("overlap"))))
    engine = Engine(network(), EngineConfig(max_request_tok=longest, **given), programs=programs, log=hear)
    _shared[longest, bool(more.get("overlap"))] = engine.programs
    began = time.perf_counter()
    engine.run(requests)
    seconds, stats = time.perf_counter() - began, engine.stats()
    busy = stats.host_s + stats.device_s
    rows = [
        row(part, f"{name}: output", stats.output_tok / seconds, "tok/s", f"{len(requests)} requests"),
        row(part, f"{name}: total", (stats.prompt_tok + stats.output_tok) / seconds, "tok/s"),
        row(part, f"{name}: slots busy in a decode step", stats.occupancy, ""),
        row(part, f"{name}: hit rate", stats.hit_rate, ""),
        row(part, f"{name}: host share of step time", stats.host_s / busy, ""),
    ]
    return rows, stats


_shared: dict[Any, Any] = {}


def protocol(seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    low, high = max(2, int(100 * _SCALE.value)), int(1024 * _SCALE.value)
    return [
        Request(
            client="abcd"[i % 4],
            id=f"q{i}",
            prompt_ids=prompt(rng, rng.randint(low, high)),
            sampling=Sampling(max_tokens=rng.randint(low, high), ignore_eos=True),
        )
        for i in range(_REQUESTS.value)
    ]


def offline() -> list[Row]:
    requests = protocol()
    rows: list[Row] = []
    for name, overlap in (("in turn", False), ("overlap", True)):
        more, _ = serve("offline", name, requests, overlap=overlap)
        rows += more
    return rows


def shared() -> list[Row]:
    rng = random.Random(1)
    size = max(32, int(512 * _SCALE.value))
    stems = [prompt(rng, size) for _ in range(16)]
    requests = [
        Request(
            client=f"c{i % 16}",
            id=f"q{i}",
            prompt_ids=stems[i % 16] + prompt(rng, max(4, size // 8)),
            sampling=Sampling(max_tokens=max(4, size // 8), ignore_eos=True),
        )
        for i in range(_REQUESTS.value)
    ]
    rows: list[Row] = []
    for name, reuse in (("no cache", False), ("cache", True)):
        more, _ = serve("shared", name, requests, reuse=reuse)
        rows += more
    rates = [r["value"] for r in rows if r["figure"].endswith("total")]
    return [*rows, row("shared", "cache over no cache", rates[1] / rates[0], "", "tokens/s")]


def clients() -> list[Row]:
    from serving.fair import measure

    requests = protocol(seed=2)
    flood = [dataclasses.replace(r, client="flood" if i % 8 else "modest") for i, r in enumerate(requests)]
    rows: list[Row] = []
    for policy in ("fcfs", "vtc"):
        log: list[dict[str, Any]] = []
        more, _ = serve("clients", policy, flood, log, policy=policy)
        report = measure.report(log)
        rows += more[:1]
        rows.append(row("clients", f"{policy}: largest gap of waiting clients", report.gap, "tok"))
        wait = measure.percentile(report.ttft_s["modest"], 90)
        rows.append(row("clients", f"{policy}: modest client's TTFT p90", wait, "s"))
    return rows


# ---- memory ----


def memory(context: int = 8192, page: int = 16, budget_requests: int = 64) -> list[Row]:
    """Requests of `context` tokens that one budget holds at once, counted by the engine's own page books."""
    wide = ModelConfig(n_layers=24, kv_wiring="standard", window=1024)
    budget = budget_requests * kv_bytes(wide, context, dtype=wide.dtype)
    held = {}
    rows = []
    for pattern in ("standard", "ma_offset"):
        config = dataclasses.replace(wide, kv_wiring=pattern)
        formula = budget / kv_bytes(config, context, dtype=config.dtype)
        held[pattern] = admitted(config, budget, context, page)
        rows.append(
            row("memory", f"{pattern}: requests at once", held[pattern], "", f"{context} tokens each")
        )
        rows.append(row("memory", f"{pattern}: by the byte formula", formula, ""))
        rows.append(
            row("memory", f"{pattern}: over the formula", held[pattern] / formula, "", "goal >= 0.98")
        )
    gain = held["ma_offset"] / held["standard"]
    return [*rows, row("memory", "ma_offset over standard", gain, "")]


def admitted(config: ModelConfig, budget: int, context: int, page: int) -> int:
    """How many decoding requests of `context` tokens the page books take, pools split for that length."""
    from serving.memory import PagedMemory
    from serving.pages import Group
    from serving.tokens import Ids

    token_bytes = kv_bytes(dataclasses.replace(config, n_layers=1, kv_wiring="0"), 1, dtype=config.dtype)
    owners = [config.layers[o].window for o in config.owners]
    windows = sorted(set(owners), key=lambda w: -1 if w is None else w)
    most = {w: math.ceil(context / page) for w in windows}
    for w in windows:
        if w is not None:
            most[w] = min(most[w], math.ceil((w - 1) / page) + 1)
    each = sum(most[w] * page * token_bytes * owners.count(w) for w in windows)
    count = budget // each
    groups = [Group(w, count * most[w] + 1) for w in windows]
    books = PagedMemory(groups, page_tok=page, max_slots=2 * count, max_tok=context, span_tok=1, reuse=False)
    while (got := books.admit(Ids([0] * (context - 1)), None, context, reserve=True)) is not None:
        # Decoding at its full length: what its window has left behind is free again.
        holding, at = got
        while at < context - 1:
            assert books.grow(holding, at, at + 1)
            at += 1
            books.computed(holding, Ids([]), at, share=False)
    return 2 * count - books.slots_free


PARTS: dict[str, Callable[[], list[Row]]] = {
    "host": host,
    "decode": decode,
    "prefix": prefix,
    "start": start,
    "offline": offline,
    "shared": shared,
    "clients": clients,
    "memory": memory,
}


def main() -> None:
    if unknown := sorted(set(_ONLY.value) - set(PARTS)):
        raise ValueError(f"--only names {', '.join(unknown)}; there are {', '.join(PARTS)}")
    from mixattn import results

    console = Console(stderr=True)
    rows: list[Row] = []
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for name in _ONLY.value or PARTS:
        console.print(f"{name} ...")
        rows += PARTS[name]()
        sizes = f"--scale={_SCALE.value} --requests={_REQUESTS.value}"
        note = f"python -m serving.bench --only={name} {sizes}; seed 0, {os.uname().machine} CPU"
        results.write_csv(out / f"{name}.csv", [r for r in rows if r["part"] == name], about=note)
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
