"""Counting parameters without allocating them."""

import dataclasses

import jax
from flax import nnx

from configs import paper_5b
from mixattn.params import count
from tests.mixattn.tiny import TINY, model, wired


def test_the_count_is_that_of_the_real_arrays():
    for config in (
        TINY,
        wired("standard", tied=True),
        wired("ma", n_experts=3, experts_per_token=2, dense_layers=(1,)),
    ):
        arrays = jax.tree.leaves(nnx.split(model(config))[1])
        counts = count(config)
        assert counts.total == sum(x.size for x in arrays) == sum(counts.by_part.values())


def test_idle_experts_are_not_active():
    config = wired("standard", n_experts=4, experts_per_token=1)
    one_expert = 3 * config.d_model * config.d_ff
    counts = count(config)
    assert counts.total - counts.active == config.n_layers * 3 * one_expert
    assert count(dataclasses.replace(config, experts_per_token=4)).active == counts.total


def test_the_papers_shape_has_the_papers_counts():
    counts = count(paper_5b.get_config().model)
    assert f"{counts.total / 1e9:.2f} {counts.active / 1e9:.2f}" == "5.21 1.64"
    assert (counts.total, counts.active) == (5_206_844_928, 1_639_589_376)


def test_sharing_saves_the_readers_projections():
    standard, offset = (count(paper_5b.get_config(name).model).total for name in ("standard", "ma_offset"))
    assert standard - offset == (24 - 9) * 2 * 1536 * 3 * 128


def test_the_command_prints_the_counts(run_module):
    done = run_module("mixattn.params", "--config=configs/paper_5b.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5,206,844,928 parameters, 1,639,589,376 active")
