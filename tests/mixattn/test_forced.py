"""Likelihoods through a cache are those of a plain forward pass, unless the cache forgets."""

import jax
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer, generate
from mixattn.forced import log_likelihoods
from mixattn.keep import Keep

CONFIG = ModelConfig(
    n_layers=3,
    kv_wiring="0_1s_0",
    window=6,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=50,
    dtype="float32",
)
NET = Transformer(CONFIG, rngs=nnx.Rngs(0))
ROWS = np.random.default_rng(0).integers(50, size=(2, 40)).tolist()


def plain(rows):
    nats_BTV = jax.nn.log_softmax(NET(np.asarray(rows)), axis=-1)
    return np.take_along_axis(np.asarray(nats_BTV)[:, :-1], np.asarray(rows)[:, 1:, None], axis=2)[..., 0]


@pytest.mark.parametrize("keep", [None, Keep(budget=64)])
def test_likelihoods_without_forgetting_are_those_of_one_forward_pass(keep):
    np.testing.assert_allclose(log_likelihoods(NET, ROWS, 15, keep=keep), plain(ROWS)[:, 14:], atol=2e-5)


def test_a_small_budget_changes_likelihoods_but_not_the_first():
    cut = log_likelihoods(NET, ROWS, 15, keep=Keep(budget=3))
    np.testing.assert_allclose(cut[:, 0], plain(ROWS)[:, 14], atol=2e-5)
    assert np.abs(cut - plain(ROWS)[:, 14:]).max() > 1e-3


def test_a_text_read_behind_a_cut_prompt_continues_it():
    """With everything kept, prompt and continuation are one prompt, in batches of any lengths."""
    prompts, then = [ROWS[0][:9], ROWS[1][:14]], [ROWS[0][9:16], ROWS[1][14:17]]
    whole = generate(NET, [p + t for p, t in zip(prompts, then, strict=True)], 8)
    for keep in (None, Keep(budget=64), Keep("snapkv", 64, when="prompt")):
        assert generate(NET, prompts, 8, keep=keep, then=then) == whole
    assert generate(NET, prompts, 8, keep=Keep(budget=2), then=then) != whole


@pytest.mark.parametrize(
    ("rows", "prompt", "said"),
    [
        ([[1, 2, 3], [1, 2]], 1, "between 2 and 3 tokens"),
        ([[1, 2, 3]], 3, "a prompt of 3 tokens leaves nothing of rows of 3"),
    ],
)
def test_rows_that_leave_nothing_to_score_are_refused(rows, prompt, said):
    with pytest.raises(ValueError, match=said):
        log_likelihoods(NET, rows, prompt)
