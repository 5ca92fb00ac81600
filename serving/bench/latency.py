"""Time to first token: with a cached prompt, and from the start of a process."""

import os
import random
import subprocess
import sys
import tempfile
from statistics import median

from pallas_kernels import measure
from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling


def prefix(size: Size) -> list[Row]:
    """Prompts of 1040 tokens: first cold, then with another end behind the same 1024 tokens."""
    from serving.engine.engine import Engine

    limits = Limits(chunk_tok=256, step_tok=256, decode_steps=(1,))
    engine = Engine(network(), EngineConfig(max_request_tok=1280, prefill_rows=(1,), limits=limits))
    rng = random.Random(0)
    shared: list[int] = []

    def ttft_s(new: bool) -> float:
        if new:
            shared[:] = prompt(rng, 1024)
        one = Request(client="a", prompt_ids=shared + prompt(rng, 16), sampling=Sampling(max_tokens=1))
        [output] = engine.run([one])
        return output.first_token_s - output.arrival_s

    sides = {"cold": lambda: ttft_s(new=True), "hit": lambda: ttft_s(new=False)}
    cold, hit = measure.interleave(sides, 9, warmup=0).values()  # the engine is compiled
    return [
        row("prefix", "TTFT cold, 1040 tokens", 1e3 * median(cold), "ms"),
        row("prefix", "TTFT with 1024 tokens cached", 1e3 * median(hit), "ms"),
        row("prefix", "cached over cold", median(hit) / median(cold), "", goal="<= 0.30"),
    ]


_START = """
import time; began = time.perf_counter()
from serving.bench import latency; print(latency.first_token() and time.perf_counter() - began)
"""


def first_token() -> bool:
    """Builds an engine of the demo's shapes and generates one token."""
    from serving.engine.engine import Engine

    engine = Engine(
        network(), EngineConfig(num_pages=49, max_request_tok=144, limits=Limits(chunk_tok=64, step_tok=128))
    )
    [output] = engine.run([Request(client="a", prompt_ids=[1, 2, 3], sampling=Sampling(max_tokens=1))])
    return bool(output.output_ids)


def start(size: Size) -> list[Row]:
    """Two processes, imports included, that share a compilation cache which is empty at first."""
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
        row("start", "process to first token, no compiled programs kept", seconds[0], "s", goal="< 20"),
        row("start", "the same with the compilation cache", seconds[1], "s", goal="< 5"),
    ]
