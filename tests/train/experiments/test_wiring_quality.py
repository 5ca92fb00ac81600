"""Language modelling with several wirings, uptraining into one: runs are kept, inits are as named."""

import dataclasses

import numpy as np
import pytest

from configs import language
from configs import uptrain as uptrain_config
from mixattn import ModelConfig, kv_bytes
from mixattn.hf import load
from pallas_kernels import results
from tests.train import tiny
from train import data, prepare, run
from train.experiment import TrainingExperiment
from train.experiments import uptrain, wiring_quality


def small() -> TrainingExperiment:
    experiment = tiny.get_config()
    experiment.model = ModelConfig(
        **{**vars(experiment.model), "n_layers": 4, "kv_wiring": "", "qk_norm": True, "d_model": 16}
    )
    experiment.train.stages[0].steps, experiment.train.evaluate_every = 4, 2
    experiment.train.evaluate_windows = 0
    return experiment


@pytest.fixture(scope="module")
def uptrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uptrain")
    config = uptrain.UptrainExperiment(inits=("mean",), seeds=(0,), dense=small(), steps=2)
    uptrain.compare(config, folder / "runs", folder / "results")
    return folder, config


def test_an_init_is_trained_in_the_new_wiring_and_its_losses_recorded(uptrained):
    folder, _ = uptrained
    (row,) = results.read_csv(folder / "results" / "uptrain.csv")
    assert (row["variant"], row["wiring"], row["steps"]) == ("mean", "0s_1_2s_1", "2")
    assert row["nats_2"] == row["nats"] != row["first"]
    assert "<svg" in (folder / "results" / "uptrain.svg").read_text()


def test_every_init_is_as_its_name_says(uptrained):
    folder, config = uptrained
    dense = folder / "runs" / "runs" / "standard_0" / "model"
    model, _ = load(dense)
    old = [block.attention.k.kernel[...] for block in model.blocks]

    def begin(init):
        experiment = config.uptraining(init, dense)
        experiment.train.seed = 7  # another seed than the dense model's
        return prepare.initial_params(experiment)

    new = {init: begin(init) for init in uptrain.ALL_INITS}
    key = {init: params["blocks.1.attention.k.kernel"] for init, params in new.items()}  # shared by 1 and 3
    np.testing.assert_array_equal(key["dense"], old[1])
    np.testing.assert_array_equal(key["owner"], old[1])
    np.testing.assert_allclose(key["mean"], (old[1] + old[3]) / 2, rtol=1e-6)
    for init in ("random", "scratch"):
        assert not np.allclose(key[init], old[1], atol=0.01)
    for init, params in new.items():
        assert ("blocks.3.attention.k.kernel" in params) == (init == "dense")
        same = np.array_equal(params["embed.table"], model.embed.table[...])
        assert same == (init != "scratch")


def test_an_init_from_another_shape_or_tokenizer_is_refused(uptrained, tmp_path):
    folder, config = uptrained
    model = folder / "runs" / "runs" / "standard_0" / "model"
    wide = config.uptraining("mean", model)
    wide.model = dataclasses.replace(wide.model, d_ff=128)
    with pytest.raises(ValueError, match="d_ff 64, this experiment 128"):
        prepare.initial_params(wide)
    other = config.uptraining("mean", model)
    other.data.path, other.data.limit_bytes = "", 100_000
    data.prepare(other.data, tmp_path / "data", 280)
    other.data.path = str(tmp_path / "data")
    with pytest.raises(ValueError, match=r"are not those of .*standard_0/model/tokenizer\.json"):
        run.run(other, tmp_path / "run")


@pytest.mark.long
def test_a_wiring_is_a_row_of_the_table_with_its_bytes_and_loss(tmp_path):
    config = wiring_quality.WiringExperiment(variants=("ma_offset",), seeds=(0,), experiment=small())
    wiring_quality.compare(config, tmp_path / "runs", tmp_path / "results")
    (row,) = results.read_csv(tmp_path / "results" / "language.csv")
    model = config.experiment.model
    assert int(row["kv_bytes"]) == kv_bytes(dataclasses.replace(model, kv_wiring="ma_offset"), 32)
    assert float(row["bits_per_byte"]) < float(row["nats"]) / np.log(2)  # a token is more than a byte
    assert "<svg" in (tmp_path / "results" / "language.svg").read_text()


def test_the_experiments_configs_are_sound():
    for config in (language.get_config(), uptrain_config.get_config()):
        config.check()
    reach = config.dense.model.n_layers * (config.dense.model.window - 1) + 1
    assert reach < config.dense.train.stages[0].seq_len


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inits": ("median",)}, "inits has 'median'"),
        ({"steps": 0}, "0 steps with lr_scale 0.5 trains nothing"),
        ({"wiring": "sideways"}, "kv_wiring entry 0 is 'sideways'"),
    ],
)
def test_an_invalid_uptraining_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        uptrain.UptrainExperiment(dense=small(), **change).check()
