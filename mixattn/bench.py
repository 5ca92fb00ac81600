"""Decode and prefill on this machine: against transformers on the same weights, and against the machine
itself.

    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m mixattn.bench transformers --model=small
    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m mixattn.bench windows

`transformers` saves a random Llama-shaped model, lets both sides generate from it in turns within one run,
and times their decode steps as each comes: transformers' one by one, ours by strides of 16, between which the
host does not look. Beside them stands the floor: the step's weight matmuls alone, and its weight and K/V
bytes at the bandwidth measured here. `windows` shows that a sliding layer's decode step does not grow with
the context. Both write a CSV under results/.
"""

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from mixattn import ModelConfig, Transformer, hf
from mixattn.cache import Ring
from mixattn.generation import STRIDE, decode, pad, prefill, rounded
from mixattn.sample import SamplingParams
from mixattn.spec import kv_bytes
from mixattn.tools import cli
from mixattn.tools.baseline_process import peer
from pallas_kernels import results

flags.DEFINE_enum("model", "small", ["small", "half_billion"], "Shape for `transformers`.")
flags.DEFINE_string(
    "torch", ".venv-parity/bin/python", "The interpreter that has transformers (`make parity`)."
)
flags.DEFINE_list("batches", "1,32", "Batch sizes for `transformers`.")
flags.DEFINE_integer("repeats", 5, "Interleaved repeats; medians and minima are reported.", lower_bound=1)
flags.DEFINE_string(
    "out", None, "CSV to write (default results/decode_MODEL.csv, results/decode_windows.csv)."
)
FLAGS = flags.FLAGS

MODELS = {
    "small": ModelConfig(
        n_layers=8,
        d_model=512,
        n_heads=8,
        n_kv_heads=4,
        head_dim=64,
        d_ff=1376,
        vocab_size=8192,
    ),
    "half_billion": ModelConfig(
        n_layers=24,
        d_model=1280,
        n_heads=20,
        n_kv_heads=4,
        head_dim=64,
        d_ff=3456,
        vocab_size=16_384,
    ),
}
_SCRIPT = "tests/parity/torch_bench.py"
PROMPT, STRIDES = 300, 2
NEW = 1 + STRIDES * STRIDE


def best_and_median(seconds: list[float]) -> dict[str, float]:
    return {"median_ms": round(1e3 * median(seconds), 3), "min_ms": round(1e3 * min(seconds), 3)}


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def against_transformers() -> None:
    config = MODELS[FLAGS.model]
    model = Transformer(config, rngs=nnx.Rngs(0))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        hf.save(model, folder, architecture="llama")
        with peer(_SCRIPT, [FLAGS.torch, _SCRIPT]) as ask:
            theirs = ask(model=folder)
            for batch in map(int, FLAGS.batches):
                rows += compare(model, ask, batch)
                print(*(json.dumps(row) for row in rows[-2:]), sep="\n")
    note = {
        "other side": theirs["versions"],
        "their threads": theirs["threads"],
        "parameters": theirs["parameters"],
    }
    results.write_csv(FLAGS.out or f"results/decode_{FLAGS.model}.csv", rows, config=config, seed=0, **note)


def compare(model: Transformer, ask, batch: int) -> list[dict]:
    """Two rows, decode step and prefill: ours, theirs with either cache, and the ratio to the better of
    them."""
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, PROMPT)).tolist()
    sides = {"ours": ours(model, prompts)}
    for cache in ("dynamic", "static"):
        sides[cache] = functools.partial(ask, batch=batch, prompt=PROMPT, new=NEW, cache=cache)
    step: dict[str, list[float]] = {name: [] for name in sides}
    prefill_s: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(FLAGS.repeats + 1):
        for name, side in sides.items():
            found = side()
            if repeat:  # the first time compiles ours and warms theirs
                step[name] += found["step_s"]
                prefill_s[name].append(found["prefill_s"])
    rows = []
    for what, times in (("decode step", step), (f"prefill {PROMPT}", prefill_s)):
        row: dict = {"what": what, "batch": batch}
        for name in sides:
            row |= {f"{name}_{key}": value for key, value in best_and_median(times[name]).items()}
        for key in ("median_ms", "min_ms"):
            row[f"ratio_{key[:-3]}"] = round(
                min(row[f"dynamic_{key}"], row[f"static_{key}"]) / row[f"ours_{key}"], 2
            )
        rows.append(row | (floor(model, batch) if what == "decode step" else {}))
    return rows


def ours(model: Transformer, prompts: list[list[int]]) -> Callable[[], dict]:
    """What `generate` does, with the clock read behind prefill and each of its strides of decode steps."""
    graphdef, params = nnx.split(model)
    knobs_B, stop_X = SamplingParams.greedy(len(prompts), np), jnp.zeros(0, jnp.int32)
    tokens_BT, count_B = pad(prompts, model.config.vocab_size)
    sizes = {"cache": Ring, "capacity": rounded(PROMPT + NEW)}

    def run() -> dict:
        begin = time.perf_counter()
        state = jax.block_until_ready(prefill(graphdef, params, tokens_BT, count_B, knobs_B, stop_X, **sizes))
        prefill_s, step_s = time.perf_counter() - begin, []
        for _ in range(STRIDES):
            begin = time.perf_counter()
            state, new_SB = decode(graphdef, params, state, knobs_B, stop_X, STRIDE)
            np.asarray(new_SB)
            step_s.append((time.perf_counter() - begin) / STRIDE)
        return {"prefill_s": prefill_s, "step_s": step_s}

    return run


def floor(model: Transformer, batch: int) -> dict[str, float]:
    """What one decode step cannot go below here: its weight matmuls alone, and its bytes at this machine's
    speed."""
    kernels = [p.get_value() for _, p in nnx.to_flat_state(nnx.split(model)[1]) if p.get_value().ndim == 2]
    kernels = [k for k in kernels if k.shape[0] != model.config.vocab_size]
    inputs = {k.shape[0]: jnp.ones((batch, k.shape[0])) for k in kernels}

    @jax.jit
    def matmuls(kernels, inputs):
        return [inputs[k.shape[0]] @ k for k in kernels]

    @jax.jit
    def read(kernels):
        return [jnp.sum(k) for k in kernels]

    for call in (lambda: matmuls(kernels, inputs), lambda: read(kernels)):
        timed(call)
    matmul_s = min(timed(lambda: matmuls(kernels, inputs)) for _ in range(9))
    read_s = min(timed(lambda: read(kernels)) for _ in range(9))
    weight_bytes = sum(k.nbytes for k in kernels)
    kv = batch * kv_bytes(model.config, PROMPT + NEW // 2, "float32")
    bandwidth = weight_bytes / read_s
    return {
        "matmul_floor_ms": round(1e3 * matmul_s, 3),
        "byte_floor_ms": round(1e3 * (weight_bytes + kv) / bandwidth, 3),
        "bandwidth_gb_s": round(bandwidth / 1e9, 1),
    }


def windows() -> None:
    """One decode step of an all-sliding model at several context lengths; window 1024."""
    config = ModelConfig(
        n_layers=4,
        d_model=256,
        n_heads=8,
        n_kv_heads=2,
        head_dim=64,
        d_ff=688,
        vocab_size=1024,
        kv_wiring="swa",
    )
    model = Transformer(config, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    stop_X, knobs_B, states = jnp.zeros(0, jnp.int32), SamplingParams.greedy(1, np), {}
    for context in (2048, 8192, 32_768):
        tokens = jnp.zeros((1, context), jnp.int32)
        sizes = {"cache": Ring, "capacity": context + 1024}
        args = (tokens, jnp.asarray([context], jnp.int32), knobs_B, stop_X)
        begin = time.perf_counter()
        state = jax.block_until_ready(prefill(graphdef, params, *args, **sizes))
        states[context] = state
        print(f"context {context}: prefilled in {time.perf_counter() - begin:.1f} s with compilation")
    times: dict[int, list[float]] = {context: [] for context in states}
    for repeat in range(FLAGS.repeats + 1):
        for context, state in states.items():
            begin = time.perf_counter()
            states[context], new_SB = decode(graphdef, params, state, knobs_B, stop_X, 16)
            jax.block_until_ready(new_SB)
            if repeat:
                times[context].append((time.perf_counter() - begin) / 16)
    rows = []
    for context, seconds in times.items():
        row = {"context": context, "window": config.window, **best_and_median(seconds)}
        rows.append(row | {"over_2k": round(median(seconds) / median(times[2048]), 3)})
        print(json.dumps(rows[-1]))
    results.write_csv(FLAGS.out or "results/decode_windows.csv", rows, config=config, seed=0)


COMMANDS = {"transformers": against_transformers, "windows": windows}
COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""

if __name__ == "__main__":
    if COMMAND not in COMMANDS and not {"--help", "-h", "--helpfull"} & set(sys.argv):
        print(f"error: say one of {', '.join(COMMANDS)}, not {COMMAND!r}", file=sys.stderr)
        sys.exit(2)
    jax.config.update("jax_platforms", "cpu")
    cli.run(COMMANDS.get(COMMAND, windows))
