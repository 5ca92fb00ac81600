"""From an experiment and a folder to a trained model in it: claim, prepare, train, judge, export."""

import contextlib
import math
import shutil
from pathlib import Path
from typing import Any

import jax

from mixattn import ModelConfig, hf
from mixattn.tools import files
from pallas_kernels import results
from train import objective, optimizer, progress, tokens
from train.experiment import TrainingExperiment
from train.loop import Diverged, Evaluator, Trainer
from train.prepare import prepared, read_bars, starting_params
from train.run_directory import claimed, recipe


def run(
    experiment: TrainingExperiment,
    workdir: str | Path,
    *,
    step: int | None = None,
    profile: bool = False,
    tensorboard: bool = False,
    evaluators: tuple[Evaluator, ...] = (),
) -> dict[str, Any]:
    """Trains `experiment` into `workdir`, or goes on doing so; returns what summary.json says.

    Args:
      step: go on from this checkpoint instead of the newest; newer ones are then made again.
      tensorboard: also write the metrics as events into `workdir`/tensorboard.

    Raises:
      ValueError: the folder holds another experiment, the corpus is no corpus, a checkpoint is damaged, the
        loss left the finite numbers, or the final loss misses `train.gate`.
      OSError: the folder cannot be written.
    """
    folder = Path(workdir)
    with claimed(folder, experiment):
        if (folder / "summary.json").exists() and step is None:
            summary = files.read_json(folder / "summary.json")
            print(
                f"{folder} is trained already: {_verdict(summary)}; remove it, or name --step, to train again"
            )
            return summary
        params = starting_params(experiment)
        run, start = prepared(experiment, folder, step, evaluators, params)
        with contextlib.ExitStack() as closing:
            closing.callback(run.line.close)
            if run.metrics:
                closing.callback(run.metrics.close)
                if tensorboard:
                    run.board = progress.Board(folder / "tensorboard", start)
                    closing.callback(run.board.close)
            closing.callback(run.checkpoints.close)
            params = run.train(params, start, folder / "profile" if profile else None)
            run.checkpoints.wait()
            return _finish(run, params, folder)


def _finish(run: Trainer, params: dict[str, jax.Array], folder: Path) -> dict[str, Any]:
    """Full validation, export, summary; then the gate."""
    last = len(run.stages) - 1
    loss = run.validate(last, params)
    if not math.isfinite(loss):
        raise Diverged(f"the final validation loss is {loss}")
    corpus, experiment = run.corpora[-1], run.experiment
    params = run.gather(params)
    if jax.process_index():
        return {}
    _export(experiment, params, corpus, folder)
    bars = read_bars(folder)
    rows = progress.read(folder / "metrics.csv")
    summary = {
        "validation_nats": loss,
        "validation_bits_per_byte": loss / math.log(2) / corpus.bytes_per_token,
        "bars_nats": bars,
        "gate": experiment.train.gate,
        "passed": experiment.train.gate == "none" or loss < bars[experiment.train.gate],
        "parameters": optimizer.count(params),
        "steps": run.steps,
        "tokens": int(rows[-1]["tokens"]),
        "train_seconds": float(rows[-1]["seconds"]),
        "corpus": {"path": experiment.data.path or "the standard library", **corpus.manifest},
        "evaluated": run.evaluated,
        "curve": [
            {
                name: float(row[name])
                for name in ("step", "loss", "validation", "seconds", "tokens")
                if row[name]
            }
            for row in rows
        ],
        "environment": results.surroundings(),
        "config": recipe(experiment),
    }
    files.write_json(folder / "summary.json", summary)
    run.line.close()
    print(_verdict(summary))
    if not summary["passed"]:
        gate = experiment.train.gate
        raise ValueError(
            f"the model misses its bar: {loss:.3f} nats a token against the {gate}'s {bars[gate]:.3f}"
        )
    return summary


def _export(
    experiment: TrainingExperiment, params: dict[str, jax.Array], corpus: tokens.TokenizedCorpus, folder: Path
) -> None:
    """model/ and heldout.jsonl; each appears whole."""
    stages = experiment.train.stages
    theta = stages[-1].rope_theta or experiment.model.rope_theta
    config = ModelConfig(**{**vars(experiment.model), "rope_theta": theta})
    model = objective.model_of(config, params)
    unfinished = folder / ".model.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        hf.save(model, unfinished, tokenizer=corpus.tokenizer)
    except Exception as why:  # the writer of safetensors has an exception type of its own
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"the model could not be written to {folder}: {why}") from why
    shutil.rmtree(folder / "model", ignore_errors=True)
    unfinished.rename(folder / "model")
    with files.whole(folder / "heldout.jsonl") as temporary:
        shutil.copyfile(corpus.folder / "heldout.jsonl", temporary)


def _verdict(summary: dict[str, Any]) -> str:
    bars = "  ".join(f"{name} {nats:.3f}" for name, nats in summary["bars_nats"].items())
    return (
        f"validation loss {summary['validation_nats']:.3f} nats a token "
        f"({summary['validation_bits_per_byte']:.3f} bits a byte); Kneser-Ney bars of the same tokens: {bars}"
    )
