"""From an experiment and a folder to a trained model: lock, prepare, train, validate, export."""

import contextlib
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from mixattn import ModelConfig, hf
from mixattn.tools import files
from pallas_kernels import results
from train import objective, optimizer, progress
from train.experiment import TrainingExperiment
from train.loop import Diverged, Evaluator, Trainer
from train.objective import Params
from train.prepare import initial_params, prepare_run
from train.recipe import recipe
from train.run_directory import claimed
from train.tokens import TokenizedCorpus


def run(
    experiment: TrainingExperiment,
    workdir: str | Path,
    *,
    step: int | None = None,
    profile: bool = False,
    tensorboard: bool = False,
    evaluators: tuple[Evaluator, ...] = (),
) -> dict[str, Any]:
    """Trains `experiment` in `workdir`, or resumes it; returns the content of summary.json.

    Args:
      step: checkpoint to resume from instead of the newest; newer ones are removed.
      profile: writes a profiler trace of five steps to `workdir`/profile.
      tensorboard: also writes the metrics as events to `workdir`/tensorboard.

    Raises:
      ValueError: the folder holds another experiment, the corpus cannot be used, a checkpoint is damaged, the
        loss is not finite, or the final loss is not below the baseline `train.must_beat`.
      OSError: the folder cannot be written.
    """
    folder = Path(workdir)
    with claimed(folder, experiment, step) as claim:
        if (folder / "summary.json").exists() and step is None and not claim.changes:
            summary = files.read_json(folder / "summary.json")
            print(
                f"{folder} is trained already: {_verdict(summary)}; remove it or pass --step to train again"
            )
            return summary
        params = initial_params(experiment)
        trainer, start_step = prepare_run(
            experiment, claim, params, step=step, tensorboard=tensorboard, evaluators=evaluators
        )
        claim.record()
        with contextlib.ExitStack() as closing:
            for part in (trainer.line, trainer.metrics, trainer.board, trainer.checkpoints):
                if part:
                    closing.callback(part.close)
            params = trainer.train(params, start_step, folder / "profile" if profile else None)
            trainer.checkpoints.wait()
            return _finish(trainer, params, folder)


def _finish(trainer: Trainer, params: Params, folder: Path) -> dict[str, Any]:
    """Validates on the whole split, exports the model, writes the summary, compares with the baseline."""
    loss = trainer.validate(len(trainer.stages) - 1, params)
    if not math.isfinite(loss):
        raise Diverged(f"the final validation loss is {loss}")
    params = _gather(params)
    if jax.process_index():
        return {}
    _export(trainer.experiment, params, trainer.corpora[-1], folder)
    summary = _summary(trainer, params, loss, progress.read(folder / "metrics.csv"))
    files.write_json(folder / "summary.json", summary)
    trainer.line.close()
    print(_verdict(summary))
    if not summary["passed"]:
        name = trainer.experiment.train.must_beat
        raise ValueError(
            f"the model does not beat its baseline: {loss:.3f} nats per token, "
            f"the {name} has {trainer.baselines[name]:.3f}"
        )
    return summary


def _gather(params: Params) -> Params:
    """Returns the whole parameters on every process."""
    if jax.process_count() == 1:
        return params
    return multihost_utils.process_allgather(params, tiled=True)


def _summary(trainer: Trainer, params: Params, loss: float, rows: list[dict[str, str]]) -> dict[str, Any]:
    """The content of summary.json.

    `bars_nats` holds the baselines and `gate` is `train.must_beat`, under the names of the first version, so
    that readers take files of all versions.
    """
    experiment, corpus = trainer.experiment, trainer.corpora[-1]
    must_beat = experiment.train.must_beat
    curve = ("step", "loss", "validation", "seconds", "tokens")
    return {
        "validation_nats": loss,
        "validation_bits_per_byte": loss / math.log(2) / corpus.bytes_per_token,
        "bars_nats": trainer.baselines,
        "gate": must_beat,
        "passed": must_beat == "none" or loss < trainer.baselines[must_beat],
        "parameters": optimizer.count_params(params),
        "steps": trainer.steps,
        "tokens": trainer.tokens_after(sum(trainer.steps)),
        "train_seconds": trainer.seconds,
        "corpus": {"path": experiment.data.path or "the standard library", **corpus.manifest},
        "evaluated": trainer.evaluated,
        "curve": [{name: float(row[name]) for name in curve if row[name]} for row in rows],
        "environment": results.surroundings(),
        "config": recipe(experiment),
    }


def _export(experiment: TrainingExperiment, params: Params, corpus: TokenizedCorpus, folder: Path) -> None:
    """Writes model/ and heldout.jsonl, each whole or not at all."""
    stages = experiment.train.stages
    theta = stages[-1].rope_theta or experiment.model.rope_theta
    config = ModelConfig(**{**vars(experiment.model), "rope_theta": theta})
    # The master copy is more exact than what the config asks for.
    model = objective.model_of(config, {path: x.astype(config.dtype) for path, x in params.items()})
    unfinished = folder / ".model.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        hf.save(model, unfinished, companions=_companions(experiment, corpus))
    except Exception as why:  # safetensors raises an exception type of its own
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"the model could not be written to {folder}: {why}") from why
    shutil.rmtree(folder / "model", ignore_errors=True)
    unfinished.rename(folder / "model")
    with files.whole(folder / "heldout.jsonl") as temporary:
        shutil.copyfile(corpus.folder / "heldout.jsonl", temporary)


def _companions(experiment: TrainingExperiment, corpus: TokenizedCorpus) -> hf.Companions:
    """What the initial model came with, or else a tokenizer whose separator begins, ends and pads texts."""
    source = experiment.train.init_from
    if source and (Path(source) / "config.json").is_file():
        return dataclasses.replace(hf.companions(source), tokenizer=corpus.tokenizer)
    id = corpus.separator
    text = corpus.tokenizer.id_to_token(id)
    names = {f"{role}_token": text for role in ("bos", "eos", "pad")}
    return hf.Companions(corpus.tokenizer, names)


def _verdict(summary: dict[str, Any]) -> str:
    baselines = "  ".join(f"{name} {nats:.3f}" for name, nats in summary["bars_nats"].items())
    return (
        f"validation loss {summary['validation_nats']:.3f} nats per token "
        f"({summary['validation_bits_per_byte']:.3f} bits per byte); "
        f"Kneser-Ney baselines of the same tokens: {baselines}"
    )
