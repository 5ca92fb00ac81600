"""What the loop costs: beside the same compiled step called bare, and beside PyTorch, in one run.

    NPROC=1 taskset -c 3 python -m train.bench --config=configs/demo.py
    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m train.bench --config=configs/llama.py \\
        --torch=.venv-parity/bin/python

Bare is forward, backward and update on one batch that already lies on the device. The loop adds the input
pipeline, the metrics file and the checkpoints. With `--torch` an interpreter that has torch trains a model of
the same shape on batches of the same size (`train.bench_torch`). All are interleaved in rounds; medians are
compared.
"""

import contextlib
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from mixattn.tools import cli
from pallas_kernels import results
from train import bench_torch, data, loop, malloc_tuning, mesh, prepare, progress, tokens
from train.bench_torch import Side
from train.checkpoint import Checkpoints
from train.experiment import Stage, TrainingExperiment
from train.experiments import sweep
from train.objective import init_params


def measure(
    experiment: TrainingExperiment,
    steps: int,
    rounds: int,
    folder: Path,
    others: dict[str, Side] | None = None,
) -> list[dict[str, Any]]:
    """One row a round: seconds a step, bare, in the loop, and of every other side."""
    stage = dataclasses.replace(experiment.train.stages[0], seconds=0, tokens=0, steps=steps)
    experiment.train.stages, experiment.train.evaluate_every = [stage], 0
    corpus = _corpus(stage, experiment.model.vocab_size, folder)
    compiled = prepare.compile_stage(experiment, stage, mesh.make(experiment.mesh))
    params = init_params(experiment.model, 0)
    windows = data.Windows(corpus.train, None, seq_len=stage.seq_len, seed=0)
    batch = jax.device_put(next(data.batches(windows, stage.batch_size)), compiled.rows)
    rows = []
    for number in range(rounds):
        rows.append({"round": number, "steps": steps, "bare_s": _bare(compiled, params, batch, steps)})
        rows[-1]["loop_s"] = _looped(experiment, stage, compiled, corpus, params, folder / str(number))
        rows[-1] |= {f"{name}_s": side(steps) for name, side in (others or {}).items()}
    return rows


def _corpus(stage: Stage, vocab_size: int, folder: Path) -> tokens.TokenizedCorpus:
    ids = (
        np.random.default_rng(0).integers(1, vocab_size, 64 * stage.batch_size * stage.seq_len).astype("<u2")
    )
    return tokens.TokenizedCorpus(folder, ids, ids[:0], None, None, {})


def _bare(compiled, params, batch, steps: int) -> float:
    state, total = compiled.init_state(params), jnp.int32(steps)
    state, _ = compiled.train(state, batch, total)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for _ in range(steps):
        state, _ = compiled.train(state, batch, total)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / steps


def _looped(experiment, stage: Stage, compiled, corpus, params, folder: Path) -> float:
    folder.mkdir()
    checkpoints = Checkpoints(folder / "checkpoints")
    metrics = progress.MetricsFile(folder / "metrics.csv", 0)
    line = progress.TrainingLine(stage.steps, quiet=True)
    one = loop.Trainer(experiment, [stage.steps], [compiled], [corpus], checkpoints, metrics, line)
    began = time.perf_counter()
    jax.block_until_ready(one.train(params, 0))
    spent = time.perf_counter() - began
    metrics.close()
    checkpoints.close()
    return spent / stage.steps


def _main() -> None:
    malloc_tuning.keep_freed_memory()
    experiment = cli.config()
    sizes = flags.FLAGS.steps, flags.FLAGS.rounds
    facts: dict[str, Any] = {}
    others: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as closing:
        if flags.FLAGS.torch:
            others, facts = closing.enter_context(bench_torch.sides(flags.FLAGS.torch, experiment))
        rows = measure(experiment, *sizes, Path(folder), others)
    for name, kind in (("median", statistics.median), ("min", min)):
        step_s = {side: kind([row[side] for row in rows]) for side in rows[0] if side.endswith("_s")}
        print(name, ", ".join(f"{side[:-2]} {s * 1e3:.1f} ms" for side, s in step_s.items()))
        facts |= {
            f"{name}_{side[:-2]}_over_loop": round(s / step_s["loop_s"], 3) for side, s in step_s.items()
        }
    rows = [{**row, **results.surroundings()} for row in rows]
    out = flags.FLAGS.out or ("results/train_torch.csv" if flags.FLAGS.torch else "results/train_loop.csv")
    sweep.write_table(Path(out), rows, config=experiment, **facts)


if __name__ == "__main__":
    malloc_tuning.restart_with_huge_pages()
    logging.set_verbosity(logging.FATAL)
    cli.define_config()
    flags.DEFINE_integer("steps", 40, "Steps a round.")
    flags.DEFINE_integer("rounds", 5, "Rounds.")
    flags.DEFINE_string("torch", "", "A Python interpreter with torch and transformers, to compare with.")
    flags.DEFINE_string("out", "", "Where the table goes; results/train_{loop,torch}.csv by default.")
    cli.run(_main)
