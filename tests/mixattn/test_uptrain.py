"""Rewiring a trained model: unshared layers are unchanged, and new groups are initialized as documented."""

import jax
import numpy as np
import pytest
from flax import nnx

from mixattn.uptrain import rewire
from tests.mixattn.tiny import logits, model, tokens, wired

DENSE = wired("standard", qk_norm=True)


def params(m) -> dict:
    return nnx.to_pure_dict(nnx.split(m)[1])


@pytest.mark.parametrize("init", ["owner", "mean", "random"])
def test_the_same_wiring_is_the_same_model(init):
    same = rewire(model(DENSE), "standard", init=init)
    for one, other in zip(jax.tree.leaves(params(same)), jax.tree.leaves(params(model(DENSE))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_windows_alone_keep_every_weight():
    wide = rewire(model(DENSE), "swa", window=64)
    np.testing.assert_array_equal(logits(wide.config, tokens(), nnx.split(wide)[1]), logits(DENSE, tokens()))


@pytest.mark.parametrize("init", ["owner", "mean"])
def test_an_owner_starts_from_its_own_or_its_groups_mean(init):
    shared = rewire(model(DENSE), "0s_0s_2_3s_3s_2", window=5, init=init)
    old, new = params(model(DENSE))["blocks"], params(shared)["blocks"]
    for owner, group in {0: (0, 1), 2: (2, 5), 3: (3, 4)}.items():
        for name in ("k", "v"):
            sources = [owner] if init == "owner" else group
            want = np.mean([old[i]["attention"][name]["kernel"] for i in sources], axis=0)
            np.testing.assert_allclose(new[owner]["attention"][name]["kernel"], want, rtol=1e-6)
    assert {"k", "v", "k_norm"}.isdisjoint(new[1]["attention"])
    np.testing.assert_array_equal(new[1]["attention"]["q"]["kernel"], old[1]["attention"]["q"]["kernel"])
    assert np.isfinite(logits(shared.config, tokens(), nnx.split(shared)[1])).all()


def test_a_random_start_draws_the_keys_and_values_of_groups_and_nothing_else():
    one, again, other = (
        params(rewire(model(DENSE), "0s_0s_2_3s_3s_5", window=5, init="random", seed=seed))["blocks"]
        for seed in (1, 1, 2)
    )
    old = params(model(DENSE))["blocks"]
    for layer in (0, 3):
        drawn = one[layer]["attention"]["k"]["kernel"]
        np.testing.assert_array_equal(drawn, again[layer]["attention"]["k"]["kernel"])
        for different in (old, other):
            assert not np.allclose(drawn, different[layer]["attention"]["k"]["kernel"], atol=0.01)
        np.testing.assert_array_equal(
            one[layer]["attention"]["q"]["kernel"], old[layer]["attention"]["q"]["kernel"]
        )
    for layer in (2, 5):  # groups of one
        np.testing.assert_array_equal(
            one[layer]["attention"]["v"]["kernel"], old[layer]["attention"]["v"]["kernel"]
        )


def test_sharing_cannot_be_undone():
    with pytest.raises(ValueError, match="needs the K/V of layer 1, which reads layer 0's"):
        rewire(model(wired("cla")), "standard")


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="init is 'median'"):
        rewire(model(DENSE), "ma", init="median")
