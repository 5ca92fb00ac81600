"""What the loop costs: its steps a second beside the same compiled step called bare, in one run.

    flock /tmp/mixattn-bench.lock taskset -c 3 env NPROC=1 python -m train.bench --config=configs/demo.py

Bare is forward, backward and update on one batch that already lies on the device. The loop adds the input
pipeline, the metrics file and the checkpoints. The two are interleaved in rounds; medians are compared.
"""

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

from mixattn import cli
from train import data, heap, loop, mesh, progress, run, table, tokens
from train.checkpoint import Checkpoints
from train.loop import Stage
from train.objective import init_params


def measure(experiment: loop.Experiment, steps: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """One row a round: seconds a step, bare and in the loop."""
    stage = dataclasses.replace(experiment.train.stages[0], seconds=0, tokens=0, steps=steps)
    experiment.train.stages, experiment.train.evaluate_every = [stage], 0
    corpus = _corpus(stage, experiment.model.vocab_size, folder)
    compiled = run._compiled(experiment, stage, mesh.make(experiment.mesh))
    params = init_params(experiment.model, 0)
    windows = data.Windows(corpus.train, None, seq_len=stage.seq_len, seed=0)
    batch = jax.device_put(next(data.batches(windows, stage.batch_size)), compiled.rows)
    rows = []
    for number in range(rounds):
        rows.append({"round": number, "steps": steps, "bare_s": _bare(compiled, params, batch, steps)})
        rows[-1]["loop_s"] = _looped(experiment, stage, compiled, corpus, params, folder / str(number))
    return rows


def _corpus(stage: Stage, vocab_size: int, folder: Path) -> tokens.Tokens:
    ids = (
        np.random.default_rng(0).integers(1, vocab_size, 64 * stage.batch_size * stage.seq_len).astype("<u2")
    )
    return tokens.Tokens(folder, ids, ids[:0], None, None, {})


def _bare(compiled, params, batch, steps: int) -> float:
    state, total = compiled.start(params), jnp.int32(steps)
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
    metrics = progress.Metrics(folder / "metrics.csv", 0)
    line = progress.Line(stage.steps, quiet=True)
    one = loop.Run(experiment, [stage.steps], [compiled], [corpus], checkpoints, metrics, line)
    began = time.perf_counter()
    jax.block_until_ready(one.train(params, 0))
    spent = time.perf_counter() - began
    metrics.close()
    checkpoints.close()
    return spent / stage.steps


def _main() -> None:
    heap.keep()
    experiment = cli.config()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(experiment, flags.FLAGS.steps, flags.FLAGS.rounds, Path(folder))
    bare, looped = (statistics.median(row[name] for row in rows) for name in ("bare_s", "loop_s"))
    print(f"bare {bare * 1e3:.1f} ms, loop {looped * 1e3:.1f} ms a step: ratio {looped / bare:.3f}")
    rows = [{**row, **run.environment()} for row in rows]
    table.write_csv(Path(flags.FLAGS.out), rows, config=experiment, median_ratio=round(looped / bare, 4))


if __name__ == "__main__":
    heap.restart_with_huge_pages()
    logging.set_verbosity(logging.FATAL)
    cli.define_config()
    flags.DEFINE_integer("steps", 40, "Steps a round.")
    flags.DEFINE_integer("rounds", 5, "Rounds.")
    flags.DEFINE_string("out", "results/train_loop.csv", "Where the table goes.")
    cli.run(_main)
