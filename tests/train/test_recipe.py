"""Recipes: field names of older versions are translated, and a run that an older version began resumes."""

import dataclasses
import shutil
import tarfile
from pathlib import Path

import pytest

from mixattn import ModelConfig
from mixattn.tools import files
from train import progress, run
from train.data import DataConfig
from train.experiment import CheckpointConfig, Stage, TrainConfig, TrainingExperiment
from train.experiments.sweep import sweep
from train.experiments.uptrain import UptrainExperiment
from train.optimizer import OptimizerConfig
from train.recipe import as_json, recipe, upgrade
from train.resume import differences

# The folder of a run that commit 23cc231 took to step 6, with the checkpoint of step 2 only. All names in it
# are those of that version (train.start, rule, rate, trains, moments, bars.json, ...).
OLD_RUN = Path(__file__).parent / "fixtures" / "run_of_first_version.tar.gz"


def experiment() -> TrainingExperiment:
    """What the old run was configured as, under today's names."""
    model = ModelConfig(
        n_layers=2,
        d_model=8,
        n_heads=1,
        n_kv_heads=1,
        head_dim=8,
        d_ff=16,
        vocab_size=264,
        kv_wiring="0s_1",
        window=4,
        tied=True,
    )
    stages = [
        Stage(name="first", steps=3, batch_size=2, seq_len=8),
        Stage(name="second", steps=3, batch_size=2, seq_len=8, trainable="attention", lr_scale=0.5),
    ]
    train = TrainConfig(
        stages=stages,
        optimizer=OptimizerConfig(name="adamw", learning_rate=0.01, warmup=2, final_lr_ratio=0.1),
        evaluate_every=2,
        evaluate_windows=4,
    )
    data, checkpoints = DataConfig(path="sums.jsonl"), CheckpointConfig(every=1, keep_last=10)
    return TrainingExperiment(data=data, model=model, train=train, checkpoints=checkpoints)


@pytest.fixture
def old_run(tmp_path):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def test_a_run_of_an_older_version_resumes_with_the_losses_it_had(old_run):
    before = progress.read(old_run / "metrics.csv")
    entropies = files.read_json(old_run / "bars.json")
    summary = run.run(experiment(), old_run)
    after = progress.read(old_run / "metrics.csv")
    assert [row["step"] for row in after] == [str(n) for n in range(1, 7)]
    assert after[:2] == before[:2]
    for old, new in zip(before[2:], after[2:], strict=True):
        for name in ("loss", "grad_norm", "validation"):
            assert bool(old[name]) == bool(new[name])
            if old[name]:
                assert float(new[name]) == pytest.approx(float(old[name]), rel=1e-4), (new["step"], name)
    assert summary["bars_nats"] == entropies
    assert not (old_run / "baselines.json").exists()


def test_a_run_of_an_older_version_of_another_config_is_still_refused(old_run):
    other = experiment()
    other.train.optimizer.learning_rate = 0.02
    with pytest.raises(ValueError, match=r"train\.optimizer\.learning_rate is 0\.01 there and 0\.02 here"):
        run.run(other, old_run)


def test_every_old_name_becomes_the_name_of_a_field(old_run):
    old = files.read_json(old_run / "config.json")
    assert differences(old, recipe(experiment()))  # the negative control
    assert upgrade(old) == recipe(experiment())
    assert upgrade(upgrade(old)) == upgrade(old)


def test_a_sweep_of_an_older_version_resumes(old_run, tmp_path):
    config = UptrainExperiment(dense=experiment())
    before = {name: value for name, value in as_json(config).items() if name not in ("inits", "seeds")}
    before["rate"] = before.pop("lr_scale")
    before["dense"] |= files.read_json(old_run / "config.json")
    (tmp_path / "sweep").mkdir()
    files.write_json(tmp_path / "sweep" / "config.json", before)
    shutil.copy(tmp_path / "sweep" / "config.json", tmp_path / "before.json")
    free = ("inits", "seeds")
    rows = sweep(config, [("mean", 0)], lambda variant, seed: {}, tmp_path / "sweep", free=free)
    assert [row["variant"] for row in rows] == ["mean"]
    shutil.copy(tmp_path / "before.json", tmp_path / "sweep" / "config.json")
    other = dataclasses.replace(config, lr_scale=0.25)
    with pytest.raises(ValueError, match="holds runs of another config"):
        sweep(other, [], lambda variant, seed: {}, tmp_path / "sweep", free=free)
