"""Decode and prefill on this machine: against transformers with the same weights, and by context length.

    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m mixattn.bench transformers --model=small
    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m mixattn.bench windows

`transformers` saves a random Llama-shaped model and lets both sides generate from it in interleaved rounds.
It times every decode step of transformers, and ours in strides of 16, within which the host does not
synchronize. The floor beside them is the step's weight matmuls alone, and its weight and K/V bytes at the
bandwidth measured here. `windows` shows that a sliding layer's decode step does not grow with the context.
Both write a CSV under results/.
"""

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from mixattn import ModelConfig, Transformer, hf
from mixattn.cache import Ring
from mixattn.generation import STRIDE, GenerationState, decode, pad, prefill, rounded
from mixattn.sample import SamplingParams
from mixattn.spec import kv_bytes
from mixattn.tools import cli
from mixattn.tools.baseline_process import QueryFn, peer
from pallas_kernels import measure, results

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


def against_transformers() -> None:
    """Times both sides and writes results/decode_MODEL.csv."""
    config = MODELS[FLAGS.model]
    model = Transformer(config, rngs=nnx.Rngs(0))
    rows: list[dict[str, Any]] = []
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
    out = Path(FLAGS.out or f"results/decode_{FLAGS.model}.csv")
    results.write_csv(out, rows, config=config, seed=0, **note)


def compare(model: Transformer, ask: QueryFn, batch: int) -> list[dict[str, Any]]:
    """Rows for decode step and prefill: ours, theirs with each of two caches, the ratio to the better one."""
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, PROMPT)).tolist()
    sides: dict[str, Callable[[], dict[str, Any]]] = {"ours": ours(model, prompts)}
    for cache in ("dynamic", "static"):
        sides[cache] = functools.partial(ask, batch=batch, prompt=PROMPT, new=NEW, cache=cache)
    taken = measure.interleave(sides, FLAGS.repeats)
    step_s = {name: [s for found in rounds for s in found["step_s"]] for name, rounds in taken.items()}
    prefill_s = {name: [found["prefill_s"] for found in rounds] for name, rounds in taken.items()}
    rows = []
    for what, times in (("decode step", step_s), (f"prefill {PROMPT}", prefill_s)):
        row: dict[str, Any] = {"what": what, "batch": batch}
        for name in sides:
            row |= {f"{name}_{key}": value for key, value in measure.milliseconds(times[name]).items()}
        for statistic in measure.STATISTICS:
            theirs = min(row[f"{cache}_{statistic}_ms"] for cache in ("dynamic", "static"))
            row[f"ratio_{statistic}"] = round(theirs / row[f"ours_{statistic}_ms"], 2)
        rows.append(row | (floor(model, batch) if what == "decode step" else {}))
    return rows


def ours(model: Transformer, prompts: list[list[int]]) -> Callable[[], dict[str, Any]]:
    """The steps of `generate`, with the clock read after prefill and after each stride of decode steps."""
    graphdef, params = nnx.split(model)
    sampling_B, stop_X = SamplingParams.greedy(len(prompts), np), jnp.zeros(0, jnp.int32)
    tokens_BT, count_B = pad(prompts, model.config.vocab_size)
    sizes = {"cache": Ring, "capacity": rounded(PROMPT + NEW)}

    def run() -> dict[str, Any]:
        begin = time.perf_counter()
        state = jax.block_until_ready(
            prefill(graphdef, params, tokens_BT, count_B, sampling_B, stop_X, **sizes)
        )
        prefill_s, step_s = time.perf_counter() - begin, []
        for _ in range(STRIDES):
            begin = time.perf_counter()
            state, new_SB = decode(graphdef, params, state, sampling_B, stop_X, STRIDE)
            np.asarray(new_SB)
            step_s.append((time.perf_counter() - begin) / STRIDE)
        return {"prefill_s": prefill_s, "step_s": step_s}

    return run


def floor(model: Transformer, batch: int) -> dict[str, float]:
    """Lower bounds of one decode step: its weight matmuls alone, and its bytes at the measured bandwidth."""
    kernels = [p.get_value() for _, p in nnx.to_flat_state(nnx.split(model)[1]) if p.get_value().ndim == 2]
    kernels = [k for k in kernels if k.shape[0] != model.config.vocab_size]
    inputs = {k.shape[0]: jnp.ones((batch, k.shape[0])) for k in kernels}

    @jax.jit
    def matmuls(kernels: list[jax.Array], inputs: dict[int, jax.Array]) -> list[jax.Array]:
        return [inputs[k.shape[0]] @ k for k in kernels]

    @jax.jit
    def read(kernels: list[jax.Array]) -> list[jax.Array]:
        return [jnp.sum(k) for k in kernels]

    sides = {
        "matmuls": measure.timed(lambda: matmuls(kernels, inputs)),
        "read": measure.timed(lambda: read(kernels)),
    }
    taken = measure.interleave(sides, rounds=9)
    matmul_s, read_s = min(taken["matmuls"]), min(taken["read"])
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
    stop_X, sampling_B, states = jnp.zeros(0, jnp.int32), SamplingParams.greedy(1, np), {}
    for context in (2048, 8192, 32_768):
        tokens = jnp.zeros((1, context), jnp.int32)
        sizes = {"cache": Ring, "capacity": context + 1024}
        args = (tokens, jnp.asarray([context], jnp.int32), sampling_B, stop_X)
        begin = time.perf_counter()
        state = jax.block_until_ready(prefill(graphdef, params, *args, **sizes))
        states[context] = state
        print(f"context {context}: prefilled in {time.perf_counter() - begin:.1f} s with compilation")
    sides = {str(context): _decoder(graphdef, params, state, sampling_B) for context, state in states.items()}
    times = measure.interleave(sides, FLAGS.repeats)
    rows: list[dict[str, Any]] = []
    for length, seconds in times.items():
        row = {"context": int(length), "window": config.window, **measure.milliseconds(seconds)}
        rows.append(row | {"over_2k": round(median(seconds) / median(times["2048"]), 3)})
        print(json.dumps(rows[-1]))
    results.write_csv(Path(FLAGS.out or "results/decode_windows.csv"), rows, config=config, seed=0)


def _decoder(
    graphdef: nnx.GraphDef, params: nnx.State, state: GenerationState, sampling_B: SamplingParams
) -> Callable[[], float]:
    """Seconds per decode step of the next stride from `state` on."""
    stop_X = jnp.zeros(0, jnp.int32)

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        state, new_SB = decode(graphdef, params, state, sampling_B, stop_X, STRIDE)
        jax.block_until_ready(new_SB)
        return (time.perf_counter() - start) / STRIDE

    return run


def define_flags() -> None:
    flags.DEFINE_enum("model", "small", list(MODELS), "Shape for `transformers`.")
    flags.DEFINE_string("torch", ".venv-parity/bin/python", "A Python with transformers (`make parity`).")
    flags.DEFINE_list("batches", "1,32", "Batch sizes for `transformers`.")
    flags.DEFINE_integer("repeats", 5, "Interleaved rounds; medians and minima are reported.", lower_bound=1)
    flags.DEFINE_string("out", None, "CSV to write; results/decode_{MODEL,windows}.csv by default.")


COMMANDS = {"transformers": against_transformers, "windows": windows}


def main(argv: list[str]) -> None:
    """Runs the command named by the first argument; the others are flags."""
    command = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else ""
    if command not in COMMANDS and not {"--help", "-h", "--helpfull"} & set(argv):
        print(f"error: say one of {', '.join(COMMANDS)}, not {command!r}", file=sys.stderr)
        sys.exit(2)
    jax.config.update("jax_platforms", "cpu")
    define_flags()
    cli.run(COMMANDS.get(command, windows), [argv[0], *argv[1 + bool(command) :]])


if __name__ == "__main__":
    main(sys.argv)
