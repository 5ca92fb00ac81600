"""The training loop's overhead: its step beside the same compiled step called alone, and beside PyTorch.

    NPROC=1 taskset -c 3 python -m train.bench --config=configs/demo.py
    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m train.bench --config=configs/llama.py \\
        --torch=.venv-parity/bin/python

`bare` is forward, backward and update on one batch that is already on the device. `loop` adds the input
pipeline, the metrics file and the checkpoints. With `--torch`, an interpreter that has torch trains a model
of the same shape on batches of the same size (`train.bench_torch`). All run in interleaved rounds; medians
and minima are compared.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from mixattn.tools import cli
from pallas_kernels import measure, results
from train import bench_torch, data, loop, malloc_tuning, mesh, prepare, progress, tokens
from train.bench_torch import Side
from train.checkpoint import Checkpoints
from train.experiment import Stage, TrainingExperiment
from train.objective import Params, init_params
from train.step import CompiledStage


def step_seconds(
    experiment: TrainingExperiment,
    steps: int,
    rounds: int,
    folder: Path,
    others: dict[str, Side] | None = None,
) -> list[dict[str, Any]]:
    """One row per round: seconds per step of the bare step, of the loop, and of every other side."""
    stage = dataclasses.replace(experiment.train.stages[0], seconds=0, tokens=0, steps=steps)
    experiment.train.stages, experiment.train.evaluate_every = [stage], 0
    corpus = _corpus(stage, experiment.model.vocab_size, folder)
    compiled = prepare.compile_stage(experiment, stage, mesh.make(experiment.mesh))
    params = init_params(prepare.master_config(experiment), 0)
    windows = data.Windows(corpus.train, None, seq_len=stage.seq_len, seed=0)
    batch = jax.device_put(next(data.batches(windows, stage.batch_size)), compiled.rows)
    folders = (folder / str(number) for number in itertools.count())
    sides: dict[str, Callable[[], float]] = {
        "bare": functools.partial(_bare, compiled, params, batch, steps),
        "loop": lambda: _looped(experiment, stage, compiled, corpus, params, next(folders)),
        **{name: functools.partial(side, steps) for name, side in (others or {}).items()},
    }
    taken = measure.interleave(sides, rounds, warmup=0)
    return [
        {"round": i, "steps": steps, **{f"{name}_s": seconds[i] for name, seconds in taken.items()}}
        for i in range(rounds)
    ]


def _corpus(stage: Stage, vocab_size: int, folder: Path) -> tokens.TokenizedCorpus:
    ids = (
        np.random.default_rng(0).integers(1, vocab_size, 64 * stage.batch_size * stage.seq_len).astype("<u2")
    )
    return tokens.TokenizedCorpus(folder, ids, ids[:0], None, None, {})


def _bare(compiled: CompiledStage, params: Params, batch: dict[str, jax.Array], steps: int) -> float:
    state, total = compiled.init_state(params), jnp.int32(steps)
    state, _ = compiled.train(state, batch, total)
    jax.block_until_ready(state)
    start = time.perf_counter()
    for _ in range(steps):
        state, _ = compiled.train(state, batch, total)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / steps


def _looped(
    experiment: TrainingExperiment,
    stage: Stage,
    compiled: CompiledStage,
    corpus: tokens.TokenizedCorpus,
    params: Params,
    folder: Path,
) -> float:
    folder.mkdir()
    checkpoints = Checkpoints(folder / "checkpoints")
    metrics = progress.MetricsFile(folder / "metrics.csv", 0)
    line = progress.TrainingLine(stage.steps, quiet=True)
    trainer = loop.Trainer(experiment, [stage.steps], [compiled], [corpus], checkpoints, metrics, line)
    start = time.perf_counter()
    jax.block_until_ready(trainer.train(params, 0))
    spent = time.perf_counter() - start
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
        rows = step_seconds(experiment, *sizes, Path(folder), others)
    for name, statistic in measure.STATISTICS.items():
        step_s = {side: statistic([row[side] for row in rows]) for side in rows[0] if side.endswith("_s")}
        print(name, ", ".join(f"{side[:-2]} {s * 1e3:.1f} ms" for side, s in step_s.items()))
        facts |= {
            f"{name}_{side[:-2]}_over_loop": round(s / step_s["loop_s"], 3) for side, s in step_s.items()
        }
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    out = flags.FLAGS.out or ("results/train_torch.csv" if flags.FLAGS.torch else "results/train_loop.csv")
    results.write_csv(Path(out), rows, **facts, config=json.dumps(dataclasses.asdict(experiment)))


if __name__ == "__main__":
    malloc_tuning.restart_with_huge_pages()
    logging.set_verbosity(logging.FATAL)
    cli.define_config()
    flags.DEFINE_integer("steps", 40, "Steps per round.")
    flags.DEFINE_integer("rounds", 5, "Interleaved rounds.")
    flags.DEFINE_string("torch", "", "A Python interpreter with torch and transformers, to compare with.")
    flags.DEFINE_string("out", "", "CSV to write; results/train_{loop,torch}.csv by default.")
    cli.run(_main)
