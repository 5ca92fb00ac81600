"""Stages: their order and frozen parameters, non-finite losses, lengths given in seconds, evaluators."""

import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import demo, paper_stages
from mixattn import ModelConfig, hf
from mixattn.tools import cli
from tests.train import tiny
from train import loop, mesh, prepare, progress, run, step
from train.experiment import Stage
from train.objective import init_params
from train.optimizer import OptimizerConfig


def staged(tmp_path):
    questions = tmp_path / "sums.jsonl"
    records = [{"prompt": f"{a}+{b}=", "answer": f"{a + b}"} for a in range(30) for b in range(30)]
    questions.write_text("\n".join(map(json.dumps, records)))
    config = tiny.get_config()
    long = {"batch_size": 2, "seq_len": 64, "rope_theta": 1e5, "trainable": "attention"}
    config.train.stages = [
        Stage(name="pretrain", steps=5, batch_size=2, seq_len=16),
        Stage(name="extend", tokens=2 * 64 * 3, **long),
        Stage(name="questions", steps=4, path=str(questions), **long),
    ]
    config.checkpoints.every, config.checkpoints.keep_last = 1, 100
    return config


def test_stages_follow_each_other_and_freeze_what_they_do_not_train(tmp_path):
    summary = run.run(staged(tmp_path), tmp_path / "run")
    assert summary["steps"] == [5, 3, 4]
    rows = progress.read(tmp_path / "run" / "metrics.csv")
    assert [row["stage"] for row in rows] == ["pretrain"] * 5 + ["extend"] * 3 + ["questions"] * 4
    assert [int(row["tokens"]) for row in rows[4:8]] == [5 * 32, 5 * 32 + 128, 5 * 32 + 256, 5 * 32 + 384]
    saved = {}
    for at in (5, 8, 12):
        kept = ocp.StandardCheckpointer()
        saved[at] = kept.restore(tmp_path / "run" / "checkpoints" / str(at) / "state")["params"]
        kept.close()
    for path in saved[5]:
        moved = [not np.array_equal(saved[a][path], saved[b][path]) for a, b in ((5, 8), (8, 12))]
        assert moved == [".attention" in path] * 2, path
    _, config = hf.load(tmp_path / "run" / "model")
    assert config.rope_theta == 1e5
    # Resuming in a later stage restores that stage's parameters and ends with the same model.
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    for at in (10, 8):  # inside a stage, and at the boundary of two
        run.run(staged(tmp_path), tmp_path / "run", step=at)
        assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.train.stages[0].steps = 9
    config.checkpoints.every = 2
    compiled = step.CompiledStage._train

    def poisoned(self, state, batch, steps):
        state, metrics = compiled(self, state, batch, steps)
        bad = jax.numpy.where(state.step >= 6, jax.numpy.nan, 1.0)
        return state, metrics._replace(loss=metrics.loss * bad)

    monkeypatch.setattr(step.CompiledStage, "_train", poisoned)
    with pytest.raises(
        loop.Diverged, match=r"step 6 gave loss nan .* the checkpoint of step 4 is the last good"
    ):
        run.run(config, tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "4"]
    assert [int(row["step"]) for row in progress.read(tmp_path / "metrics.csv")] == [1, 2, 3, 4, 5]
    assert not (tmp_path / "summary.json").exists()


def test_a_stage_given_in_seconds_keeps_its_number_of_steps(tmp_path):
    config = tiny.get_config()
    config.train.stages = [Stage(seconds=0.001, min_steps=3, max_steps=7, batch_size=2, seq_len=32)]
    assert run.run(config, tmp_path)["steps"] == [3]
    (tmp_path / "steps.json").write_text("[4]")  # as if an earlier start had found a faster machine
    (tmp_path / "summary.json").unlink()
    assert run.run(config, tmp_path)["steps"] == [4]


def test_evaluators_are_called_at_every_evaluation_and_their_figures_kept(tmp_path):
    seen = []

    def suite(at, params):
        seen.append((at, sorted(params)[0]))
        return {"recall": 0.25}

    config = tiny.get_config()
    config.train.stages[0].steps, config.train.evaluate_every = 5, 2
    summary = run.run(config, tmp_path, evaluators=(suite,))
    assert [at for at, _ in seen] == [2, 4, 5]
    assert summary["evaluated"]["4"]["recall"] == 0.25


def test_a_trace_is_written_on_demand(tmp_path):
    config = tiny.get_config()
    config.train.stages[0].steps = 17
    run.run(config, tmp_path, profile=True)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("config", [demo.get_config(), demo.get_config("fast"), paper_stages.get_config()])
def test_the_shipped_configs_pass_their_own_checks(config):
    cli.check_tree(config)


def test_the_papers_model_has_the_papers_size():
    model = paper_stages.get_config().model
    shapes = jax.eval_shape(lambda: init_params(ModelConfig(**{**vars(model), "kv_wiring": "standard"}), 0))
    total = sum(int(np.prod(x.shape)) for x in shapes.values())
    experts = sum(int(np.prod(x.shape)) for p, x in shapes.items() if x.ndim == 3)
    assert round(total / 1e9, 2) == 5.21
    assert round((total - experts * 12 / 16) / 1e9, 2) == 1.64


def test_a_wrong_variant_is_refused():
    for config in (demo, paper_stages):
        with pytest.raises(ValueError, match="has no variant 'huge'"):
            config.get_config("huge")


def test_interrupted_twice_stops_at_once():
    with loop.deferred_interrupts() as asked:
        os.kill(os.getpid(), 2)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), 2)


def test_the_metrics_file_resumes_from_whole_rows_only(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = progress.MetricsFile(path, 0)
    row = progress.Row(1, "s", 1.5, 0.1, 0.01, 64, 0.5, 128.0)
    for n in range(1, 6):
        metrics.write(progress.Row(**{**vars(row), "step": n, "loss": 1 / 3 / n}))
    metrics.close()
    with path.open("a") as file:
        file.write("6,s,0.")  # the process was killed here
    progress.MetricsFile(path, 3).close()
    rows = progress.read(path)
    assert [int(r["step"]) for r in rows] == [1, 2, 3]
    assert float(rows[1]["loss"]) == 1 / 3 / 2  # every bit of a loss is kept


def test_the_optimizer_of_a_stage_is_scaled_without_touching_the_config():
    config = tiny.get_config()
    config.train.optimizer = OptimizerConfig(name="muon", learning_rate=0.02, adam_learning_rate=0.004)
    devices = mesh.make(config.mesh)
    compiled = prepare.compile_stage(config, Stage(steps=1, lr_scale=0.5), devices)
    assert (compiled.optimizer_config.learning_rate, compiled.optimizer_config.adam_learning_rate) == (
        0.01,
        0.002,
    )
    assert config.train.optimizer.learning_rate == 0.02
