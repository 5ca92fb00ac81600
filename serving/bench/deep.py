"""A deep stack in segments beside the same stack as one program: start-up, decode and prefill.

The shape is that of a 135 M parameter model (30 layers of 576, 9 query and 3 key/value heads, 49,152 entries)
with random weights; `start_model` times a real one where `models/smollm2` is there (`make model`).
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mixattn.spec import ModelConfig
from pallas_kernels import measure
from serving.bench import Row, Size, network, row
from serving.config import EngineConfig, Limits

if TYPE_CHECKING:
    from serving.engine.engine import Engine

DEEP = ModelConfig(
    n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, vocab_size=49_152, tied=True
)
SHALLOW_LAYERS = 4
CONFIG = EngineConfig(
    max_slots=16,
    max_request_tok=512,
    prefill_rows=(1,),
    chunk_sizes=(128,),
    decode_rows=(1,),
    limits=Limits(chunk_tok=128, step_tok=128, decode_steps=(8, 1)),
    layers_per_program=-1,
)
MODEL_FOLDER = Path("models/smollm2")


def segments(size: Size) -> list[Row]:
    """Compile seconds of both, and a decode step and a prefill chunk, interleaved on the same weights."""
    from serving.engine.engine import Engine

    net = network(DEEP)
    engines, compile_s = {}, {}
    for side, layers in (("whole", 0), ("segments", -1)):
        began = time.perf_counter()
        engines[side] = Engine(net, dataclasses.replace(CONFIG, layers_per_program=layers))
        compile_s[side] = time.perf_counter() - began
    began = time.perf_counter()
    Engine(network(dataclasses.replace(DEEP, n_layers=SHALLOW_LAYERS)), CONFIG)
    shallow_s = time.perf_counter() - began
    rows = [
        row("segments", f"programs ready, {side}", seconds, "s")
        for side, seconds in (*compile_s.items(), (f"{SHALLOW_LAYERS} layers", shallow_s))
    ]
    over = compile_s["segments"] / shallow_s
    rows.append(row("segments", f"{DEEP.n_layers} layers over {SHALLOW_LAYERS}", over, "", goal="<= 1.5"))
    for what, side_of in (
        ("decode step, 1 row", _decode(1)),
        ("decode step, 16 rows", _decode(16)),
        ("128 prompt tokens", _prefill),
    ):
        sides = {side: side_of(engine) for side, engine in engines.items()}
        seconds = measure.interleave(sides, 5 * size.repeats, warmup=1)
        for side, taken in seconds.items():
            rows.append(
                row(
                    "segments",
                    f"{what}, {side}: median",
                    1e3 * median(taken),
                    "ms",
                    f"least {1e3 * min(taken):.2f}",
                )
            )
        ratio = median(seconds["segments"]) / median(seconds["whole"])
        rows.append(row("segments", f"{what}, segments over whole", ratio, "", goal="<= 1.03"))
    return rows


def _decode(live: int) -> "Callable[[Engine], Callable[[], float]]":
    """Seconds per step of calls of eight steps, `live` rows at position 200."""

    def side(engine: "Engine") -> Callable[[], float]:
        from serving.engine.device_state import PLAIN

        programs = engine.programs
        rows = programs.rows_for(live)
        batch = programs.blank_decode(rows)
        for table in batch.tables.values():
            table[:] = 1 + np.arange(table.size).reshape(table.shape) % 500
        batch.slot_R[:] = np.arange(rows)
        batch.left_R[:live] = 8

        def run() -> float:
            state = engine.state
            state = dataclasses.replace(
                state, rows=dataclasses.replace(state.rows, position_B=state.rows.position_B * 0 + 200)
            )
            began = time.perf_counter()
            engine.state, output = programs.decode(state, batch, 8, PLAIN)
            np.asarray(output.token)
            return (time.perf_counter() - began) / 8

        return run

    return side


def _prefill(engine: "Engine") -> Callable[[], float]:
    from serving.engine.device_state import PLAIN

    batch = engine.programs.blank_prefill(1, 128, PLAIN)
    batch.count_R[:] = 128
    for table in batch.tables.values():
        table[:] = 1 + np.arange(table.size).reshape(table.shape)

    def run() -> float:
        began = time.perf_counter()
        engine.state, output = engine.programs.prefill(engine.state, batch, PLAIN)
        np.asarray(output.token)
        return time.perf_counter() - began

    return run


_START = """
import sys, time; began = time.perf_counter()
from pathlib import Path
from mixattn import hf
from serving import Engine, Request, Sampling
from serving.bench.deep import CONFIG
from serving.engine.program_cache import ProgramCache
model, _ = hf.load(sys.argv[1]); loaded = time.perf_counter()
engine = Engine(model, CONFIG, program_cache=ProgramCache(Path(sys.argv[2]))); ready = time.perf_counter()
engine.run([Request(client="a", prompt_ids=[1, 2, 3], sampling=Sampling(max_tokens=1))])
print(loaded - began, ready - loaded, time.perf_counter() - ready)
"""


def start_model(size: Size) -> list[Row]:
    """Two processes, imports included, that share a program cache which is empty at first; a real model.

    A process that only imports goes first, so that neither start waits for the disk that holds the libraries.

    Raises:
      ValueError: the model is not there.
    """
    if not (MODEL_FOLDER / "config.json").exists():
        raise ValueError(f"{MODEL_FOLDER} does not exist; `make model` fetches it")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # JAX's own cache would make the first start warm too.
        env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
        subprocess.run([sys.executable, "-c", "import mixattn.hf, serving"], env=env, check=True)
        for what, goal in (("nothing kept", "<= 6"), ("programs kept", "<= 2")):
            command = [sys.executable, "-c", _START, str(MODEL_FOLDER), f"{folder}/programs"]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            load_s, ready_s, token_s = map(float, done.stdout.split()[-3:])
            rows += [
                row("start_model", f"imports and weights, {what}", load_s, "s"),
                row("start_model", f"programs, {what}", ready_s, "s"),
                row("start_model", f"process to ready, {what}", load_s + ready_s, "s", goal=goal),
                row("start_model", f"first token after that, {what}", token_s, "s"),
            ]
    return rows
