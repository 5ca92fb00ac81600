"""Recall with heavy hitters: what a row holds, and the experiment from training to verdict."""

import dataclasses

import numpy as np
import pytest

from configs import zipf_recall as config
from train import objective
from train.experiments import zipf_recall, zipf_task
from train.experiments.zipf_task import ZipfTask

TASK = ZipfTask(pairs=4, keys=8, values=8, noise=4, told=24, length=64)


@pytest.fixture(scope="module")
def batch():
    return zipf_task.make_batch(TASK, 60, seed=3, number=0)


def test_every_question_has_the_value_behind_its_keys_only_definition(batch):
    for tokens, target, rank in zip(*(batch[k] for k in ("tokens_BT", "target_BT", "rank_BT")), strict=True):
        values = np.flatnonzero(tokens < TASK.values)
        assert len(values) == len(set(tokens[values])) == TASK.pairs  # answers are not fed back
        assert values.max() < TASK.told
        value_of = {tokens[at - 1]: tokens[at] for at in values}
        asked = np.flatnonzero(rank)
        assert all(value_of[tokens[at]] == target[at] for at in asked)
        defined_at = {tokens[at - 1]: at for at in values}
        assert all(defined_at[tokens[at]] < at for at in asked)


def test_behind_the_definitions_keys_are_asked_by_the_zipf_law(batch):
    many = zipf_task.make_batch(TASK, 800, seed=0, number=0)["rank_BT"][:, TASK.told :]
    share = np.bincount(many[many > 0], minlength=TASK.pairs + 1)[1:] / (many > 0).sum()
    weight = 1 / np.arange(1, TASK.pairs + 1)
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.015)
    assert (many > 0).mean() == pytest.approx(TASK.ask, abs=0.02)


def test_only_questions_are_in_the_loss_mask_and_a_batch_follows_from_its_seed(batch):
    np.testing.assert_array_equal(batch["loss_mask_BT"] > 0, batch["rank_BT"] > 0)
    again = zipf_task.make_batch(TASK, 60, seed=3, number=0)
    other = zipf_task.make_batch(TASK, 60, seed=3, number=1)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    assert not np.array_equal(batch["tokens_BT"], other["tokens_BT"])


def test_reading_token_by_token_with_all_keys_predicts_what_one_pass_does():
    experiment = small(scorers=())
    trained = objective.init_params(experiment.model, 0, experiment.build)
    model = objective.model_of(experiment.model, trained, experiment.build)
    rows = list(zipf_recall.measure(experiment, model))
    batch = zipf_task.make_batch(experiment.task, experiment.rows, zipf_recall.HELD_OUT, 0)
    value_BT = np.asarray(model(batch["tokens_BT"]).argmax(-1))
    asked_BT = (batch["rank_BT"] > 0) & (np.arange(experiment.task.length) >= experiment.prompt)
    right_B = ((value_BT == batch["target_BT"]) & asked_BT).sum(1) / asked_BT.sum(1)
    assert rows[0]["policy"] == "full"
    assert rows[0]["all"] == pytest.approx(right_B.mean())
    everything = dataclasses.replace(experiment, scorers=("h2o",), budgets=("64",))
    assert list(zipf_recall.measure(everything, model))[1]["all"] == rows[0]["all"]


def small(**changes):
    experiment = config.get_config("fast")
    model = dataclasses.replace(experiment.model, n_layers=3, kv_wiring="0s_1_2s", vocab_size=24)
    settings = {"task": TASK, "model": model, "prompt": 40, "steps": 2, "rows": 6, "batch_size": 4}
    return dataclasses.replace(experiment, **settings | {"budgets": ("0.3",)} | changes)


def test_trained_weights_are_kept_and_those_of_another_config_are_refused(tmp_path):
    first = zipf_recall.kept(small(), tmp_path)
    second = zipf_recall.kept(small(), tmp_path)
    assert second.facts == first.facts
    assert all(np.array_equal(first.params[name], second.params[name]) for name in first.params)
    with pytest.raises(ValueError, match="holds the weights of another config"):
        zipf_recall.kept(small(seed=1), tmp_path)


@pytest.mark.parametrize(
    ("full", "random", "holds"), [(0.97, 0.7, True), (0.94, 0.2, False), (0.97, 0.8, False)]
)
def test_the_task_is_evidence_only_if_learned_and_hurt_by_forgetting(full, random, holds):
    rows = [{"policy": "full", "all": full}, {"policy": "random 0.2", "all": random}]
    assert zipf_recall.verdict(rows)[0] is holds
    assert zipf_recall.verdict(rows[:1])[0] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": 20}, "prompt=20 must hold the definitions"),
        ({"task": dataclasses.replace(TASK, pairs=9)}, "9 pairs do not fit 8 keys"),
        ({"task": dataclasses.replace(TASK, told=6)}, "4 pairs take 8 tokens"),
        ({"budgets": ("2",)}, "the budget is 2 keys, and 4 sinks"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        small(**changes).check()


@pytest.mark.parametrize("variant", ["", "fast"])
def test_the_config_is_sound(variant):
    config.get_config(variant).check()
