"""The recall task defines and queries each pair once and leaks no answer; the comparison resumes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import recall as config
from pallas_kernels import results
from train import objective
from train.experiments import recall, recall_task
from train.experiments.recall_model import RecallModelFactory
from train.experiments.recall_task import RecallTask

TASK = RecallTask(pairs=4, keys=8, values=8)


@pytest.fixture(scope="module")
def batch():
    return recall_task.make_batch(TASK, 50, seed=3, number=0)


def test_every_query_asks_for_the_value_behind_its_keys_only_definition(batch):
    for row in range(50):
        tokens, target, distance = (batch[k][row] for k in ("tokens_BT", "target_BT", "distance_BT"))
        queries = np.flatnonzero(distance)
        assert len(queries) == TASK.pairs
        for at in queries:
            first = np.flatnonzero(tokens[:at] == tokens[at])
            assert len(first) == 1
            assert tokens[at] >= TASK.values > tokens[first[0] + 1] == target[at]
            assert at - (first[0] + 1) == distance[at]


def test_a_row_never_reveals_which_values_are_still_to_be_asked_for(batch):
    for tokens in batch["tokens_BT"]:
        values = tokens[tokens < TASK.values]
        assert len(values) == len(set(values.tolist())) == TASK.pairs  # each once: answers are not fed back
        assert len(tokens) == TASK.length


def test_only_queries_are_in_the_loss_mask(batch):
    np.testing.assert_array_equal(batch["loss_mask_BT"] > 0, batch["distance_BT"] > 0)


def test_a_batch_is_a_function_of_seed_and_number(batch):
    again = recall_task.make_batch(TASK, 50, seed=3, number=0)
    for name in batch:
        np.testing.assert_array_equal(batch[name], again[name])
    assert not np.array_equal(
        recall_task.make_batch(TASK, 50, seed=3, number=1)["tokens_BT"], batch["tokens_BT"]
    )


def test_the_guesser_among_far_values_is_far_from_both_chance_and_success():
    guess = recall_task.guess_accuracy(RecallTask(), far=25, count=300)
    assert 1 / 32 < guess < 0.25


def test_a_task_that_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="9 pairs do not fit 8 keys"):
        RecallTask(pairs=9, keys=8, values=8).check()


@pytest.mark.parametrize("variant", ["", "deep"])
def test_sliding_layers_alone_cannot_reach_the_last_bucket(variant):
    comparison = config.get_config(variant)
    comparison.check()
    assert comparison.reach == 25 < comparison.task.length
    assert comparison.reach in comparison.buckets


def test_the_control_differs_from_ma_by_one_map_of_the_previous_token():
    comparison = config.get_config()
    model = comparison.config_of("ma")
    ours = objective.init_params(model, 0, comparison.build_of("ma+previous"))
    plain = objective.init_params(model, 0, comparison.build_of("ma"))
    assert set(ours) - set(plain) == {f"blocks.0.attention.k.{x}.kernel" for x in ("here", "before")}
    assert set(plain) - set(ours) == {"blocks.0.attention.k.kernel"}
    two = objective.model_of(model, ours, comparison.build_of("ma+previous")).blocks[0].attention.k
    x = jnp.arange(3 * 64, dtype=jnp.float32).reshape(1, 3, 64) / 100
    want = x @ two.here.kernel[...] + jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1] @ two.before.kernel[...]
    np.testing.assert_allclose(two(x), want, rtol=1e-4)


def test_the_head_covers_values_only_and_starts_at_the_configured_size():
    comparison = config.get_config()
    model = comparison.config_of("ma")
    large, small = (
        RecallModelFactory(32, size)(model, rngs=nnx.Rngs(0)).lm_head.kernel[...] for size in (1.0, 0.5)
    )
    assert small.shape == (model.d_model, comparison.task.values)
    np.testing.assert_array_equal(small, large / 2)
    assert comparison.head_size == 0.5


def test_the_comparison_keeps_finished_runs_and_draws_them(tmp_path):
    comparison = config.get_config("short")
    comparison.steps, comparison.batch_size, comparison.evaluation_rows = 2, 4, 8
    comparison.model.n_layers = 4
    where = (tmp_path / "runs", tmp_path / "results")
    recall.compare(comparison, *where)
    kept = tmp_path / "runs" / "ma-0.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "all": 0.4321}))
    recall.compare(comparison, *where)
    rows = results.read_csv(tmp_path / "results" / "recall.csv")
    assert [row["variant"] for row in rows] == ["ma_offset", "ma"]
    assert rows[1]["all"] == "0.4321"  # not repeated
    assert (tmp_path / "results" / "recall.svg").read_text().count("<svg") == 1
    comparison.batch_size = 8
    with pytest.raises(ValueError, match="holds runs of another config"):
        recall.compare(comparison, *where)


@pytest.mark.long
def test_deep_shared_keys_recall_beyond_the_windows_and_shallow_ones_do_not():
    comparison = config.get_config("short")
    far = {v: recall.train_variant(comparison, v, 0)["25-35"] for v in ("ma_offset", "ma", "ma+previous")}
    assert far["ma_offset"] > 0.95
    assert far["ma+previous"] > 0.95
    assert far["ma"] < 0.2
