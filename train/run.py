"""From an experiment and a folder to a trained model in it: claim, prepare, train, judge, export."""

import contextlib
import dataclasses
import fcntl
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from tokenizers import Tokenizer

from mixattn import ModelConfig, files, hf
from mixattn.uptrain import rewire
from pallas_kernels import results
from train import data, loop, mesh, ngrams, objective, optimizer, progress, tokens
from train.checkpoint import Checkpoints
from train.objective import init_params
from train.step import Steps


def run(
    experiment: loop.Experiment,
    workdir: str | Path,
    *,
    step: int | None = None,
    profile: bool = False,
    tensorboard: bool = False,
    evaluators: tuple[loop.Evaluator, ...] = (),
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
        run, start = _prepare(experiment, folder, step, evaluators, params)
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


def starting_params(experiment: loop.Experiment) -> objective.Params:
    """Drawn from the seed; or those of the model in `train.start`, brought into this experiment's wiring.

    Raises:
      ValueError: there is no model, or it differs in more than wiring and window.
    """
    train, model = experiment.train, experiment.model
    if not train.start:
        return init_params(model, train.seed)
    source, config = hf.load(train.start)
    same = dataclasses.replace(config, kv_wiring=model.kv_wiring, window=model.window)
    if found := _difference(vars(same), vars(model)):
        name, before, now = found
        raise ValueError(f"the model in {train.start} has {name} {before!r}, this experiment {now!r}")
    rewired = rewire(source, model.wiring, window=model.window, init=train.start_kv, seed=train.seed)  # type: ignore[arg-type]
    return objective.flatten(rewired)[1]


@contextlib.contextmanager
def claimed(folder: Path, experiment: loop.Experiment) -> Iterator[None]:
    """Makes `folder`, and holds it for one experiment and one process at a time.

    Raises:
      ValueError: it holds another experiment, or another process is training in it.
      OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index():
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as why:
            raise ValueError(
                f"another process is training in {folder}; wait for it or name another --workdir"
            ) from why
        asked = json.loads(json.dumps(recipe(experiment)))
        if not (folder / "config.json").exists():
            files.write_json(folder / "config.json", asked)
        elif difference := _difference(files.read_json(folder / "config.json"), asked):
            name, before, now = difference
            raise ValueError(
                f"{folder} holds a run of another config: {name} is {before!r} there and {now!r} here; "
                "name another --workdir or remove that one"
            )
        yield


def recipe(experiment: loop.Experiment) -> dict[str, Any]:
    """The part of an experiment that decides its result."""
    return {name: dataclasses.asdict(getattr(experiment, name)) for name in ("data", "model", "train")}


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first leaf in which two trees differ: (name, one, other)."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else (name, before, now)
    for key in [*before, *(k for k in now if k not in before)]:
        inner = f"{name}.{key}" if name else str(key)
        if found := _difference(before.get(key), now.get(key), inner):
            return found
    return None


def _prepare(
    experiment: loop.Experiment, folder: Path, step: int | None, evaluators, params
) -> tuple[loop.Run, int]:
    """Data, bars, compiled stages and checkpoints of a run, and the step it starts after."""
    train, first = experiment.train, jax.process_index() == 0
    say = print if first else lambda words: None
    corpora = [_corpus(experiment, stage, folder, i, say) for i, stage in enumerate(train.stages)]
    bars = _bars(corpora[-1], experiment.model.vocab_size, folder / "bars.json", first)
    devices = mesh.make(experiment.mesh)
    stages = [_compiled(experiment, stage, devices) for stage in train.stages]
    saving = experiment.checkpoints
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=saving.keep_last, keep_best=saving.keep_best)
    start = _start(checkpoints, step, folder)
    run = loop.Run(
        experiment,
        [],
        stages,
        corpora,
        checkpoints,
        None,
        progress.Line(0, quiet=True),
        evaluators=evaluators,
    )
    run.steps = _steps(run, params, folder / "steps.json", say)
    run.metrics = progress.Metrics(folder / "metrics.csv", start) if first else None
    if train.gate in bars:
        run.bars = f" ({train.gate} {bars[train.gate]:.3f})"
    if start:
        say(f"going on from the checkpoint of step {start}")
    run.line = progress.Line(sum(run.steps), quiet=not first)
    return run, start


def _corpus(experiment: loop.Experiment, stage: loop.Stage, folder: Path, index: int, say) -> tokens.Tokens:
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


def _bars(corpus: tokens.Tokens, vocab_size: int, path: Path, first: bool) -> dict[str, float]:
    """The n-gram entropies of the last stage's validation tokens, computed once."""
    if path.exists():
        return files.read_json(path)
    bars = ngrams.entropies(corpus.train, corpus.validation, vocab_size)._asdict()
    if first:
        files.write_json(path, bars)
    return bars


def read_bars(folder: Path) -> dict[str, float]:
    """The n-gram entropies of a run's validation tokens, in nats a token."""
    return files.read_json(folder / "bars.json")


def _compiled(experiment: loop.Experiment, stage: loop.Stage, devices: jax.sharding.Mesh) -> Steps:
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


def _steps(run: loop.Run, params, path: Path, say) -> list[int]:
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


def _finish(run: loop.Run, params: dict[str, jax.Array], folder: Path) -> dict[str, Any]:
    """Full validation, export, summary; then the gate."""
    last = len(run.stages) - 1
    loss = run.validate(last, params)
    if not math.isfinite(loss):
        raise loop.Diverged(f"the final validation loss is {loss}")
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
    experiment: loop.Experiment, params: dict[str, jax.Array], corpus: tokens.Tokens, folder: Path
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
