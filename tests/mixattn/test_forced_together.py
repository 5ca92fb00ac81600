"""Budgets computed together give what each gives alone, token by token."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer
from mixattn.forced import log_likelihoods
from mixattn.forced_together import applies, log_likelihoods_together
from mixattn.keep import SCORERS, Keep

CONFIG = ModelConfig(
    n_layers=2,
    kv_wiring="standard",
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=50,
    dtype="float32",
)
NET = Transformer(CONFIG, rngs=nnx.Rngs(0))
ROWS = np.random.default_rng(0).integers(50, size=(2, 48)).tolist()
PROMPT = 32


def budget(scorer: str, share: float) -> Keep:
    when = {} if SCORERS[scorer].decodes else {"when": "prompt"}
    return Keep(scorer, share, sinks=2, window=4, pool=3, **when)


@pytest.mark.parametrize("scorer", SCORERS)
def test_budgets_together_give_the_likelihoods_of_each_alone(scorer):
    keeps = [budget(scorer, 0.25), budget(scorer, 0.5)]
    together = log_likelihoods_together(NET, ROWS, PROMPT, keeps)
    for keep, nats in zip(keeps, together, strict=True):
        np.testing.assert_allclose(nats, log_likelihoods(NET, ROWS, PROMPT, keep=keep), atol=2e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_scorers_and_the_full_cache_go_together_and_come_back_in_order():
    keeps = [budget("tova", 0.25), None, budget("h2o", 0.25), budget("h2o_mean", 0.5), budget("tova", 0.5)]
    done: list[int] = []
    together = log_likelihoods_together(NET, ROWS, PROMPT, keeps, done.append)
    assert done == [2, 3, 4, 5]
    for keep, nats in zip(keeps, together, strict=True):
        np.testing.assert_allclose(nats, log_likelihoods(NET, ROWS, PROMPT, keep=keep), atol=2e-5)


def test_the_options_of_a_budget_count():
    plain = Keep("h2o", 0.25)
    for options in ({"promotion": "always"}, {"recent": 1}, {"sinks": 4}, {"share_of": "total"}):
        keep = dataclasses.replace(plain, **options)
        here, there = log_likelihoods_together(NET, ROWS, PROMPT, [keep, plain])
        np.testing.assert_allclose(here, log_likelihoods(NET, ROWS, PROMPT, keep=keep), atol=2e-5)
        assert np.abs(here - there).max() > 1e-4


@pytest.mark.parametrize(
    ("config", "keep"),
    [
        (dataclasses.replace(CONFIG, kv_wiring="0_0"), None),
        (dataclasses.replace(CONFIG, kv_wiring="0_1s", window=4), None),
        (CONFIG, Keep(positions="rolling")),
        (CONFIG, Keep(prefill="blockwise")),
    ],
)
def test_what_depends_on_more_than_one_layer_is_refused(config, keep):
    assert not applies(config, keep)
    with pytest.raises(ValueError, match="only where each layer owns its full K/V"):
        log_likelihoods_together(Transformer(config, rngs=nnx.Rngs(0)), ROWS, PROMPT, [keep])
