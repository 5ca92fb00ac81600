"""The engine beside transformers and llama.cpp with the same weights, in interleaved rounds.

The weights are random and Llama-shaped, float32, saved once as a Hugging Face directory that all sides read.
The other sides run in their own environments and exchange JSON lines (`tests/parity/torch_serve.py`,
`tests/parity/llama_serve.py`). All are greedy and never stop early, so all should generate the same tokens.
Each side gets its best of a few settings, and the threads that OMP_NUM_THREADS and NPROC allow.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from mixattn.spec import ModelConfig
from mixattn.tools.baseline_process import QueryFn, peer
from pallas_kernels import measure
from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Output, Request, Sampling

if TYPE_CHECKING:
    from mixattn.model import Transformer

type Round = tuple[list[float], list[list[int]]]  # seconds, and the output ids of each request
type Side = Callable[[], Round]

LLAMA = ModelConfig(
    n_layers=8, d_model=256, n_heads=8, n_kv_heads=4, head_dim=32, d_ff=688, vocab_size=32_000
)
TORCH = ".venv-parity/bin/python", "tests/parity/torch_serve.py"
LLAMA_CPP = ".venv-llama/bin/python", "tests/parity/llama_serve.py"
PAGE = 64


@contextmanager
def same_weights() -> "Iterator[tuple[Transformer, str]]":
    """The model, and a Hugging Face directory that holds it for the other sides."""
    from mixattn import hf

    model = network(LLAMA)
    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, folder, architecture="llama")
        yield model, folder


# ---- transformers ----

STATIC = [{"how": "static", "batch": b} for b in (32, 64)]
CONTINUOUS = [{"how": "continuous", "batch": b, "attention": "sdpa", "step_tok": 256} for b in (16, 32)]


def transformers(size: Size) -> list[Row]:
    """64 requests, prompts and outputs uniform in 16..256 tokens, all submitted at the start."""
    rng = random.Random(0)
    work = [(prompt(rng, rng.randint(16, 256), LLAMA.vocab_size), rng.randint(16, 256)) for _ in range(64)]
    output_tok = sum(new for _, new in work)
    with same_weights() as (model, folder), peer(TORCH[1], TORCH) as torch:
        versions = torch(model=folder)["versions"]
        sides: dict[str, Side] = {"ours": offline_engine(model, work)}
        sides["ours"]()
        for how in STATIC + CONTINUOUS:
            torch(requests=[(ids[:9], 4) for ids, _ in work[:8]], **how)  # warm-up
            sides[f"{how['how']}, {how['batch']}"] = partial(_offline_peer, torch, work, how)
        taken = measure.interleave(sides, size.repeats, warmup=0)
    seconds = {name: [s for found, _ in rounds for s in found] for name, rounds in taken.items()}
    same = _agreement(taken)
    rows = []
    for name in sides:
        detail = f"{versions}; " if name != "ours" else ""
        detail += f"{len(work)} requests, {same[name]:.0%} of outputs as ours"
        rows.append(row("transformers", name, output_tok / median(seconds[name]), "output tok/s", detail))
    for kind, goal in (("static", ">= 2.5"), ("continuous", ">= 1.5")):
        for of, what in ((median, "medians"), (min, "minima")):
            best = min(of(s) for name, s in seconds.items() if name.startswith(kind))
            ratio = best / of(seconds["ours"])
            rows.append(row("transformers", f"ours over the best {kind}: {what}", ratio, "", goal=goal))
    return rows


def _offline_peer(ask: QueryFn, work: Sequence[tuple[list[int], int]], how: dict[str, Any]) -> Round:
    answer = ask(requests=work, **how)
    if "error" in answer:
        raise ValueError(f"transformers fails at {how}: {answer['error']}")
    return [answer["seconds"]], answer["outputs"]


def _agreement(taken: dict[str, list[Round]]) -> dict[str, float]:
    """The share of each side's outputs that equal ours, in the last round."""
    outputs = {name: rounds[-1][1] for name, rounds in taken.items()}
    return {
        name: sum(a == b for a, b in zip(some, outputs["ours"], strict=True)) / len(outputs["ours"])
        for name, some in outputs.items()
    }


def offline_engine(model: "Transformer", work: Sequence[tuple[list[int], int]]) -> Side:
    """Serves `work` with an empty cache; the seconds of the whole."""
    from serving.engine.engine import Engine

    slots = 32
    max_tok = max(len(ids) + new for ids, new in work)
    pages = sum(-(-(len(ids) + new) // PAGE) for ids, new in work) * slots // len(work)
    config = EngineConfig(
        max_slots=slots,
        page_size=PAGE,
        num_pages=pages + 1,  # no more than these requests need, since decoding reads the whole pool
        max_request_tok=max_tok,
        prefill_rows=(1,),
        chunk_sizes=(16, 32, 64, 96, 128, 192),
        decode_rows=(4, 8, 16, 24),
        limits=Limits(chunk_tok=256, step_tok=256, decode_steps=range(1, 17), mixed=False),
    )
    engine = Engine(model, config)
    requests = [
        Request(client="a", prompt_ids=ids, sampling=Sampling(max_tokens=new, ignore_eos=True))
        for ids, new in work
    ]

    def serve() -> Round:
        start = time.perf_counter()
        outputs = engine.run(requests)
        seconds = time.perf_counter() - start
        engine.memory.clear_cache()
        return [seconds], [list(o.output_ids) for o in outputs]

    return serve


# ---- llama.cpp ----

NEW, PROMPT = 65, 300
# The best two of float32 or float16 keys and values, with and without flash attention.
SETTINGS: list[dict[str, Any]] = [{"kv": "f32", "flash": 0}, {"kv": "f16", "flash": 1}]


def llama(size: Size) -> list[Row]:
    """Milliseconds per decode step of the whole engine after prompts of 300 tokens, batches of 32 and 1."""
    rng = random.Random(0)
    rows = []
    with same_weights() as (model, folder), peer(LLAMA_CPP[1], LLAMA_CPP) as other:
        versions = other(model=folder)["versions"]
        for batch, goal in ((32, ">= 1.5"), (1, ">= 0.67")):
            prompts = [prompt(rng, PROMPT, LLAMA.vocab_size) for _ in range(batch)]
            sides: dict[str, Side] = {"ours": decode_engine(model, prompts)}
            sides["ours"]()
            for how in SETTINGS:
                name = f"llama.cpp, {how['kv']}{', flash' * how['flash']}"
                sides[name] = partial(_decode_peer, other, prompts, how)
            taken = measure.interleave(sides, size.repeats, warmup=0)
            steps = {name: [s for found, _ in rounds for s in found] for name, rounds in taken.items()}
            same = _agreement(taken)
            for name, step_s in steps.items():
                detail = "whole engine" if name == "ours" else versions
                detail += f"; {same[name]:.0%} of outputs as ours"
                for of, what in ((median, "median"), (min, "least")):
                    figure = f"batch {batch}, {name}: {what}"
                    rows.append(row("llama", figure, 1e3 * of(step_s), "ms a step", detail))
            for of, what in ((median, "medians"), (min, "minima")):
                best = min(of(s) for name, s in steps.items() if name != "ours")
                ratio = best / of(steps["ours"])
                rows.append(row("llama", f"batch {batch}, llama.cpp over ours: {what}", ratio, "", goal=goal))
    return rows


def _decode_peer(ask: QueryFn, prompts: Sequence[list[int]], how: dict[str, Any]) -> Round:
    answer = ask(prompts=prompts, new=NEW, **how)
    if "error" in answer:
        raise ValueError(f"llama.cpp fails at {how}: {answer['error']}")
    return answer["step_s"], answer["outputs"]


def decode_engine(model: "Transformer", prompts: Sequence[list[int]]) -> Side:
    """Decodes `prompts` with an empty cache; the seconds of each decode step, the host's part included."""
    from serving.engine.engine import Engine

    batch = len(prompts)
    config = EngineConfig(
        max_slots=batch,
        page_size=PAGE,
        num_pages=batch * -(-(PROMPT + NEW) // PAGE) + 1,
        max_request_tok=PROMPT + NEW,
        prefill_rows=(1,),
        limits=Limits(chunk_tok=PROMPT, step_tok=PROMPT, decode_steps=(8, 1), mixed=False),
    )
    engine = Engine(model, config)
    sampling = Sampling(max_tokens=NEW, ignore_eos=True)
    requests = [Request(client="a", prompt_ids=ids, sampling=sampling) for ids in prompts]

    def serve() -> Round:
        ids = [engine.submit(r) for r in requests]
        finished: dict[str, Output] = {}
        step_s: list[float] = []
        while engine.live:
            before, start = engine.stats().decode_steps, time.perf_counter()
            finished |= {d.id: d.output for d in engine.step() if d.output}
            if count := engine.stats().decode_steps - before:
                step_s += [(time.perf_counter() - start) / count] * count
        engine.memory.clear_cache()
        return step_s, [list(finished[id].output_ids) for id in ids]

    return serve
