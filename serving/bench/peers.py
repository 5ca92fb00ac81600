"""The engine beside other programs with the same weights: transformers and llama.cpp, in turns in one run.

The weights are random and Llama-shaped, float32, written once as a Hugging Face directory that every side
reads. The other sides live in environments of their own and speak JSON lines (`tests/parity/torch_serve.py`,
`tests/parity/llama_serve.py`); all are greedy and nothing stops early, so all should say the same tokens.
Each side is given its best of a few settings, and as many threads as OMP_NUM_THREADS and NPROC say.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from mixattn.spec import ModelConfig
from mixattn.tools.baseline_process import peer
from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling

LLAMA = ModelConfig(
    n_layers=8, d_model=256, n_heads=8, n_kv_heads=4, head_dim=32, d_ff=688, vocab_size=32_000
)
TORCH = ".venv-parity/bin/python", "tests/parity/torch_serve.py"
LLAMA_CPP = ".venv-llama/bin/python", "tests/parity/llama_serve.py"
PAGE = 64


@contextmanager
def same_weights() -> Iterator[tuple]:
    """The model, and a directory that holds it for others."""
    from mixattn import hf

    model = network(LLAMA)
    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, folder, architecture="llama")
        yield model, folder


# ---- transformers ----

STATIC = [{"how": "static", "batch": b} for b in (32, 64)]
CONTINUOUS = [{"how": "continuous", "batch": b, "attention": "sdpa", "step_tok": 256} for b in (16, 32)]


def transformers(size: Size) -> list[Row]:
    """64 requests, prompts and outputs uniform in 16..256 tokens, all there at the start."""
    rng = random.Random(0)
    work = [(prompt(rng, rng.randint(16, 256), LLAMA.vocab_size), rng.randint(16, 256)) for _ in range(64)]
    output_tok = sum(new for _, new in work)
    with same_weights() as (model, folder), peer(TORCH[1], TORCH) as torch:
        versions = torch(model=folder)["versions"]
        ours = offline_engine(model, work)
        ours(), [torch(requests=[(ids[:9], 4) for ids, _ in work[:8]], **how) for how in STATIC + CONTINUOUS]
        taken: dict[str, list[float]] = {}
        said: dict[str, list[list[int]]] = {}
        for _ in range(size.repeats):
            _note(taken, said, "ours", *ours())
            for how in STATIC + CONTINUOUS:
                answer = torch(requests=work, **how)
                if "error" in answer:
                    raise ValueError(f"transformers fails at {how}: {answer['error']}")
                _note(taken, said, f"{how['how']}, {how['batch']}", answer["seconds"], answer["outputs"])
    rows = []
    for name, seconds in taken.items():
        detail = f"{versions}; " if name != "ours" else ""
        detail += f"{len(work)} requests, {_same(said[name], said['ours']):.0%} of outputs as ours"
        rows.append(row("transformers", name, output_tok / median(seconds), "output tok/s", detail))
    for kind, goal in (("static", ">= 2.5"), ("continuous", ">= 1.5")):
        for least, what in ((median, "medians"), (min, "minima")):
            best = min(least(s) for name, s in taken.items() if name.startswith(kind))
            ratio = best / least(taken["ours"])
            rows.append(row("transformers", f"ours over the best {kind}: {what}", ratio, "", goal=goal))
    return rows


def _note(taken, said, name: str, seconds: float, outputs: list[list[int]]) -> None:
    taken.setdefault(name, []).append(seconds)
    said[name] = outputs


def _same(some: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    return sum(a == b for a, b in zip(some, other, strict=True)) / len(other)


def offline_engine(
    model, work: Sequence[tuple[list[int], int]]
) -> Callable[[], tuple[float, list[list[int]]]]:
    """Seconds and outputs of serving `work`, each time with an empty cache."""
    from serving.engine.engine import Engine

    slots = 32
    longest = max(len(ids) + new for ids, new in work)
    pages = sum(-(-(len(ids) + new) // PAGE) for ids, new in work) * slots // len(work)
    config = EngineConfig(
        max_slots=slots,
        page_size=PAGE,
        num_pages=pages + 1,  # what so many requests need: decoding reads the whole pool
        max_request_tok=longest,
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

    def serve() -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        outputs = engine.run(requests)
        seconds = time.perf_counter() - began
        engine.memory.clear_cache()
        return seconds, [list(o.output_ids) for o in outputs]

    return serve


# ---- llama.cpp ----

NEW, PROMPT = 65, 300
# Of keys and values in float32 or float16, with and without flash attention, these two are its best here.
SETTINGS: list[dict[str, Any]] = [{"kv": "f32", "flash": 0}, {"kv": "f16", "flash": 1}]


def llama(size: Size) -> list[Row]:
    """Milliseconds a decode step of the whole engine behind prompts of 300 tokens, 32 at once and 1."""
    rng = random.Random(0)
    rows = []
    with same_weights() as (model, folder), peer(LLAMA_CPP[1], LLAMA_CPP) as other:
        versions = other(model=folder)["versions"]
        for batch, goal in ((32, ">= 1.5"), (1, ">= 0.67")):
            prompts = [prompt(rng, PROMPT, LLAMA.vocab_size) for _ in range(batch)]
            ours = decode_engine(model, prompts)
            ours()
            steps: dict[str, list[float]] = {}
            said: dict[str, list[list[int]]] = {}
            for _ in range(size.repeats):
                step_s, said["ours"] = ours()
                steps.setdefault("ours", []).extend(step_s)
                for how in SETTINGS:
                    answer = other(prompts=prompts, new=NEW, **how)
                    if "error" in answer:
                        raise ValueError(f"llama.cpp fails at {how}: {answer['error']}")
                    name = f"llama.cpp, {how['kv']}{', flash' * how['flash']}"
                    steps.setdefault(name, []).extend(answer["step_s"])
                    said[name] = answer["outputs"]
            for name, step_s in steps.items():
                detail = "whole engine" if name == "ours" else versions
                detail += f"; {_same(said[name], said['ours']):.0%} of outputs as ours"
                for least, what in ((median, "median"), (min, "least")):
                    figure = f"batch {batch}, {name}: {what}"
                    rows.append(row("llama", figure, 1e3 * least(step_s), "ms a step", detail))
            for least, what in ((median, "medians"), (min, "minima")):
                best = min(least(s) for name, s in steps.items() if name != "ours")
                ratio = best / least(steps["ours"])
                rows.append(row("llama", f"batch {batch}, llama.cpp over ours: {what}", ratio, "", goal=goal))
    return rows


def decode_engine(model, prompts: Sequence[list[int]]) -> Callable[[], tuple[list[float], list[list[int]]]]:
    """Seconds of each decode step, the host's part included, and outputs; each time with an empty cache."""
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

    def serve() -> tuple[list[float], list[list[int]]]:
        ids = [engine.submit(r) for r in requests]
        ended: dict[str, Any] = {}
        step_s: list[float] = []
        while engine.live:
            before, began = engine.stats().decode_steps, time.perf_counter()
            ended |= {d.id: d.output for d in engine.step() if d.output}
            if count := engine.stats().decode_steps - before:
                step_s += [(time.perf_counter() - began) / count] * count
        engine.memory.clear_cache()
        return step_s, [list(ended[id].output_ids) for id in ids]

    return serve
