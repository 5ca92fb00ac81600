"""What a run needs before its first step: parameters, tokens, baselines, compiled stages, checkpoints."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mixattn import ModelConfig, hf
from mixattn.tools import files
from mixattn.uptrain import rewire
from train import baselines, data, mesh, objective, progress
from train.checkpoint import Checkpoints
from train.experiment import Stage, TrainConfig, TrainingExperiment
from train.loop import Evaluator, Trainer, stage_batches
from train.objective import Params
from train.resume import differences, length_of
from train.run_directory import Claim
from train.step import CompiledStage
from train.tokens import TokenizedCorpus

_TIMED_STEPS = 5

type _Report = Callable[[str], None]


def initial_params(experiment: TrainingExperiment) -> Params:
    """Returns parameters drawn from the seed, or those of `train.init_from` in this experiment's wiring.

    Raises:
      ValueError: there is no such model, or it differs in more than wiring and window.
    """
    train, model = experiment.train, master_config(experiment)
    if not train.init_from:
        return objective.init_params(model, train.seed)
    source, config = hf.load(train.init_from, dtype=model.dtype)
    same = dataclasses.replace(config, kv_wiring=model.kv_wiring, window=model.window)
    if found := differences(vars(same), vars(model)):
        name, before, now = found[0]
        raise ValueError(f"the model in {train.init_from} has {name} {before!r}, this experiment {now!r}")
    rewired = rewire(source, model.wiring, window=model.window, init=train.kv_init, seed=train.seed)  # type: ignore[arg-type]
    return objective.flatten(rewired)[1]


def master_config(experiment: TrainingExperiment) -> ModelConfig:
    """The model as it is trained: with the dtype of the master weights."""
    return dataclasses.replace(experiment.model, dtype=experiment.train.compute.master_dtype)


def prepare_run(
    experiment: TrainingExperiment,
    claim: Claim,
    params: Params,
    *,
    step: int | None = None,
    tensorboard: bool = False,
    evaluators: tuple[Evaluator, ...] = (),
) -> tuple[Trainer, int]:
    """Builds the trainer of a run; returns it and the step it resumes from (0 = none).

    Args:
      claim: of the run's folder.
      params: initial parameters, for timing steps.
      step: checkpoint to resume from instead of the newest; newer ones are removed.

    Raises:
      ValueError: the corpus cannot be used, or there is no readable checkpoint of `step`.
    """
    train, first = experiment.train, jax.process_index() == 0
    report: _Report = print if first else lambda line: None
    folder = claim.folder
    corpora = [_open_corpus(experiment, i, claim, report) for i in range(len(train.stages))]
    for stage, corpus in zip(train.stages, corpora):
        _check_lengths(train, stage, corpus)
    entropies = _measure_baselines(corpora[-1], experiment.model.vocab_size, folder)
    devices = mesh.make(experiment.mesh)
    stages = [compile_stage(experiment, stage, devices) for stage in train.stages]
    keep = experiment.checkpoints
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=keep.keep_last, keep_best=keep.keep_best)
    start_step = _choose_checkpoint(checkpoints, step, folder)
    steps = _choose_steps(experiment, stages, corpora, params, claim, report)
    if start_step > sum(steps):
        raise ValueError(
            f"{checkpoints.folder} has a checkpoint of step {start_step}, but the run has {sum(steps)} steps;"
            " it is of another run"
        )
    if claim.changes:
        (folder / "summary.json").unlink(missing_ok=True)
        report(f"changed after step {start_step}: {', '.join(map(str, claim.changes))}")
    board = progress.Board(folder / "tensorboard", start_step) if first and tensorboard else None
    metrics = progress.MetricsFile(folder / "metrics.csv", start_step) if first else None
    if start_step:
        report(f"resuming from the checkpoint of step {start_step}")
    trainer = Trainer(
        experiment=experiment,
        steps=steps,
        stages=stages,
        corpora=corpora,
        checkpoints=checkpoints,
        metrics=metrics,
        line=progress.TrainingLine(sum(steps), quiet=not first),
        baselines=entropies,
        evaluators=evaluators,
        board=board,
    )
    return trainer, start_step


def _open_corpus(
    experiment: TrainingExperiment, index: int, claim: Claim, report: _Report
) -> TokenizedCorpus:
    """Opens the tokens of stage `index`, written by the first process if they are not there."""
    stage = experiment.train.stages[index]
    source, folder = experiment.data, claim.folder
    if stage.path:  # the own validation set and the limit belong to the first corpus
        source = dataclasses.replace(source, path=stage.path, validation_path="")
    own = folder / (f"data{index}" if stage.path else "data")
    # A later stage with its own corpus uses the first one's tokenizer; an initial model brings its own.
    tokenizer = folder / "data" / "tokenizer.json" if stage.path and index else None
    if init_from := experiment.train.init_from:
        tokenizer = Path(init_from) / "tokenizer.json"
        if not tokenizer.is_file():
            raise ValueError(
                f"train.init_from={init_from} has no tokenizer.json, with which to read the text"
            )
    vocab_size = experiment.model.vocab_size
    if jax.process_index() == 0:
        replace = claim.before is None
        corpus = data.prepare(source, own, vocab_size, report, tokenizer=tokenizer, replace=replace)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"tokens of stage {index}")
        corpus = data.prepare(source, own, vocab_size, report, tokenizer=tokenizer)
    if tokenizer and corpus.tokenizer.to_str() != hf.read_tokenizer(tokenizer).to_str():
        raise ValueError(f"the tokens in {corpus.folder} are not those of {tokenizer}")
    return corpus


def _check_lengths(train: TrainConfig, stage: Stage, corpus: TokenizedCorpus) -> None:
    """Refuses parts that are too short for one window, or whose evaluation would measure nothing."""
    need = stage.seq_len + 1
    for part in ("train", "validation"):
        if (found := len(getattr(corpus, part))) < need:
            raise ValueError(
                f"stage {stage.name!r} takes windows of {need} tokens and the {part} part of {corpus.folder}"
                f" has {found}; add text, or give a smaller seq_len or another data.validation_share"
            )
    seen = min(train.evaluate_windows or len(corpus.validation), len(corpus.validation) // stage.seq_len)
    learned = corpus.validation_loss_mask
    if learned is not None and not np.asarray(learned[1 : seen * stage.seq_len + 1]).any():
        raise ValueError(
            f"no token in the first {seen} validation windows of {corpus.folder} counts in the loss"
        )


def _measure_baselines(corpus: TokenizedCorpus, vocab_size: int, folder: Path) -> dict[str, float]:
    """Returns the n-gram entropies of the last stage's validation tokens, computed once per run."""
    if _baselines_path(folder).exists():
        return read_baselines(folder)
    entropies = baselines.entropies(corpus.train, corpus.validation, vocab_size)._asdict()
    if jax.process_index() == 0:
        files.write_json(folder / "baselines.json", entropies)
    return entropies


def read_baselines(folder: Path) -> dict[str, float]:
    """Reads the n-gram entropies of a run's validation tokens, in nats per token."""
    return files.read_json(_baselines_path(folder))


def _baselines_path(folder: Path) -> Path:
    """baselines.json, or bars.json in a folder of an older version."""
    old = folder / "bars.json"
    return old if old.exists() else folder / "baselines.json"


def compile_stage(experiment: TrainingExperiment, stage: Stage, devices: jax.sharding.Mesh) -> CompiledStage:
    """Builds the compiled functions of `stage`, with its RoPE theta and learning rates."""
    model, optimizer = master_config(experiment), experiment.train.optimizer
    return CompiledStage(
        ModelConfig(**{**vars(model), "rope_theta": stage.rope_theta or model.rope_theta}),
        dataclasses.replace(
            optimizer,
            learning_rate=optimizer.learning_rate * stage.lr_scale,
            adam_learning_rate=optimizer.adam_learning_rate * stage.lr_scale,
        ),
        experiment.train.compute,
        devices,
        trainable=stage.trainable,
        document_mask=experiment.data.document_mask,
    )


def _choose_checkpoint(checkpoints: Checkpoints, step: int | None, folder: Path) -> int:
    """Returns the step of the checkpoint to resume from (0 = none) and removes newer ones."""
    available = checkpoints.steps
    if step is None:
        return available[-1] if available else 0
    if step not in available:
        raise ValueError(
            f"--step={step}: {checkpoints.folder} has checkpoints of the steps {available or 'none'}"
        )
    checkpoints.meta(step)  # raises before anything newer is removed
    checkpoints.remove_after(step)
    (folder / "summary.json").unlink(missing_ok=True)
    return step


def _choose_steps(
    experiment: TrainingExperiment,
    stages: list[CompiledStage],
    corpora: list[TokenizedCorpus],
    params: Params,
    claim: Claim,
    report: _Report,
) -> list[int]:
    """Returns the number of steps of each stage, chosen once per run unless its config changes.

    Raises:
      ValueError: a stage would be shorter than it has been trained.
    """
    path, configs = claim.folder / "steps.json", experiment.train.stages
    kept = _kept_steps(claim, path)
    chosen = []
    for index, (stage, compiled) in enumerate(zip(configs, stages)):
        time_step = functools.partial(_step_seconds, experiment, index, compiled, corpora[index], params)
        chosen.append(kept[index] if index in kept else _stage_steps(stage, time_step))
        done = claim.done[index] if index < len(claim.done) else 0
        if chosen[-1] < done:
            raise ValueError(
                f"stage {stage.name!r} has been trained for {done} steps and cannot be cut to {chosen[-1]}"
            )
    if jax.process_count() > 1:
        chosen = [int(n) for n in multihost_utils.broadcast_one_to_all(chosen)]
    if len(kept) == len(chosen):
        return chosen
    if jax.process_index() == 0:
        files.write_json(path, chosen)
    for stage, steps in zip(configs, chosen):
        report(f"stage {stage.name}: {steps} steps of {stage.batch_size} x {stage.seq_len} tokens")
    return chosen


def _kept_steps(claim: Claim, path: Path) -> dict[int, int]:
    """The chosen lengths of the stages whose config is as it was."""
    if claim.before is None or not path.exists():
        return {}
    pairs = zip(claim.before["train"]["stages"], claim.asked["train"]["stages"])
    same = [length_of(before) == length_of(now) for before, now in pairs]
    return {i: steps for i, (steps, is_same) in enumerate(zip(files.read_json(path), same)) if is_same}


def _stage_steps(stage: Stage, time_step: Callable[[], float]) -> int:
    if stage.steps:
        return stage.steps
    if stage.tokens:
        return math.ceil(stage.tokens / (stage.batch_size * stage.seq_len))
    return min(max(int(stage.seconds / time_step()), stage.min_steps), stage.max_steps)


def _step_seconds(
    experiment: TrainingExperiment,
    index: int,
    compiled: CompiledStage,
    corpus: TokenizedCorpus,
    params: Params,
) -> float:
    """Returns the seconds of the fastest of a few steps on a copy of `params`."""
    stage = experiment.train.stages[index]
    batch = compiled.place(next(stage_batches(experiment, index, corpus)))
    state, fastest_s = compiled.init_state(params), math.inf
    for attempt in range(_TIMED_STEPS + 1):
        began = time.monotonic()
        state, metrics = compiled.train(state, batch, jnp.int32(stage.max_steps))
        metrics.loss.block_until_ready()
        if attempt:  # the first one compiles
            fastest_s = min(fastest_s, time.monotonic() - began)
    return fastest_s
