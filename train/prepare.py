"""What a run needs before its first step: parameters, tokens, bars, compiled stages, checkpoints."""

import dataclasses
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from tokenizers import Tokenizer

from mixattn import ModelConfig, hf
from mixattn.tools import files
from mixattn.uptrain import rewire
from train import baselines, data, mesh, objective, progress, tokens
from train.checkpoint import Checkpoints
from train.experiment import Stage, TrainingExperiment
from train.loop import Trainer
from train.run_directory import difference
from train.step import Steps


def starting_params(experiment: TrainingExperiment) -> objective.Params:
    """Drawn from the seed; or those of the model in `train.start`, brought into this experiment's wiring.

    Raises:
      ValueError: there is no model, or it differs in more than wiring and window.
    """
    train, model = experiment.train, experiment.model
    if not train.start:
        return objective.init_params(model, train.seed)
    source, config = hf.load(train.start)
    same = dataclasses.replace(config, kv_wiring=model.kv_wiring, window=model.window)
    if found := difference(vars(same), vars(model)):
        name, before, now = found
        raise ValueError(f"the model in {train.start} has {name} {before!r}, this experiment {now!r}")
    rewired = rewire(source, model.wiring, window=model.window, init=train.start_kv, seed=train.seed)  # type: ignore[arg-type]
    return objective.flatten(rewired)[1]


def prepared(
    experiment: TrainingExperiment, folder: Path, step: int | None, evaluators, params
) -> tuple[Trainer, int]:
    """Data, bars, compiled stages and checkpoints of a run, and the step it starts after."""
    train, first = experiment.train, jax.process_index() == 0
    say = print if first else lambda words: None
    corpora = [_corpus(experiment, stage, folder, i, say) for i, stage in enumerate(train.stages)]
    bars = _bars(corpora[-1], experiment.model.vocab_size, folder / "bars.json", first)
    devices = mesh.make(experiment.mesh)
    stages = [compiled(experiment, stage, devices) for stage in train.stages]
    saving = experiment.checkpoints
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=saving.keep_last, keep_best=saving.keep_best)
    start = _start(checkpoints, step, folder)
    run = Trainer(
        experiment,
        [],
        stages,
        corpora,
        checkpoints,
        None,
        progress.TrainingLine(0, quiet=True),
        evaluators=evaluators,
    )
    run.steps = _steps(run, params, folder / "steps.json", say)
    run.metrics = progress.MetricsFile(folder / "metrics.csv", start) if first else None
    if train.gate in bars:
        run.bars = f" ({train.gate} {bars[train.gate]:.3f})"
    if start:
        say(f"going on from the checkpoint of step {start}")
    run.line = progress.TrainingLine(sum(run.steps), quiet=not first)
    return run, start


def _corpus(
    experiment: TrainingExperiment, stage: Stage, folder: Path, index: int, say
) -> tokens.TokenizedCorpus:
    source = dataclasses.replace(experiment.data, path=stage.path or experiment.data.path)
    own = folder / (f"data{index}" if stage.path else "data")
    # Stages with a corpus of their own keep the first one's tokenizer, a model to start from brings its own.
    given = folder / "data" / "tokenizer.json" if stage.path and index else None
    if start := experiment.train.start:
        given = Path(start) / "tokenizer.json"
    if jax.process_index() == 0:
        opened = data.prepare(source, own, experiment.model.vocab_size, say, tokenizer=given)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"tokens of stage {index}")
        opened = data.prepare(source, own, experiment.model.vocab_size, say)
    if given and opened.tokenizer.to_str() != Tokenizer.from_file(str(given)).to_str():
        raise ValueError(f"the tokens in {opened.folder} are not those of {given}")
    return opened


def _bars(corpus: tokens.TokenizedCorpus, vocab_size: int, path: Path, first: bool) -> dict[str, float]:
    """The n-gram entropies of the last stage's validation tokens, computed once."""
    if path.exists():
        return files.read_json(path)
    bars = baselines.entropies(corpus.train, corpus.validation, vocab_size)._asdict()
    if first:
        files.write_json(path, bars)
    return bars


def read_bars(folder: Path) -> dict[str, float]:
    """The n-gram entropies of a run's validation tokens, in nats a token."""
    return files.read_json(folder / "bars.json")


def compiled(experiment: TrainingExperiment, stage: Stage, devices: jax.sharding.Mesh) -> Steps:
    config = ModelConfig(
        **{**vars(experiment.model), "rope_theta": stage.rope_theta or experiment.model.rope_theta}
    )
    rule = dataclasses.replace(experiment.train.optimizer)
    rule.rate, rule.adam_rate = rule.rate * stage.rate, rule.adam_rate * stage.rate
    return Steps(
        config,
        rule,
        experiment.train.compute,
        devices,
        trains=stage.trains,
        document_mask=experiment.data.document_mask,
    )


def _start(checkpoints: Checkpoints, step: int | None, folder: Path) -> int:
    """The step of the checkpoint to go on from; 0 without any."""
    there = checkpoints.steps
    if step is None:
        return there[-1] if there else 0
    if step not in there:
        raise ValueError(
            f"--step={step}: {checkpoints.folder} has checkpoints of the steps {there or 'none'}"
        )
    checkpoints.meta(step)  # readable, before anything newer is removed
    checkpoints.forget_after(step)
    (folder / "summary.json").unlink(missing_ok=True)
    return step


def _steps(run: Trainer, params, path: Path, say) -> list[int]:
    """Steps of each stage, chosen once and kept for the time the run goes on."""
    if path.exists():
        return files.read_json(path)
    train = run.experiment.train
    chosen = [run.choose_steps(i, params) for i in range(len(train.stages))]
    chosen = (
        [int(n) for n in multihost_utils.broadcast_one_to_all(chosen)] if jax.process_count() > 1 else chosen
    )
    if jax.process_index() == 0:
        files.write_json(path, chosen)
    for stage, steps in zip(train.stages, chosen):
        say(f"stage {stage.name}: {steps} steps of {stage.batch_size} x {stage.seq_len} tokens")
    return chosen
