import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer, generate
from mixattn.cache import Contiguous, kept_keys

TINY = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48, "vocab_size": 50}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13], list(range(20, 42))]


def model(wiring, window=8, seed=0):
    config = ModelConfig(
        n_layers=wiring.count("_") + 1, kv_wiring=wiring, window=window, dtype="float32", **TINY
    )
    return Transformer(config, rngs=nnx.Rngs(seed))


@pytest.mark.parametrize("wiring", ["0_1s_0"])
def test_a_budget_that_holds_everything_changes_no_token(wiring):
    net = model(wiring)
    full = generate(net, PROMPTS, 20, cache=Contiguous)
    assert generate(net, PROMPTS, 20, cache=kept_keys.with_budget(30, 30)) == full
    assert generate(net, PROMPTS, 20, cache=kept_keys.with_budget(2, 2)) != full  # the control


def test_recent_keys_alone_are_a_sliding_window():
    full, sliding = model("0"), model("0s", window=8)
    prompts = [[3, 4, 5, 6, 7, 8], [9, 10]]  # within the window, so that both compute them alike
    assert generate(full, prompts, 30, cache=kept_keys.with_budget(0, 7)) == generate(sliding, prompts, 30)


def test_prompt_scores_are_the_attention_received_and_padding_gives_none():
    """One layer by its definition: softmax over the visible keys, summed over real queries and heads."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, n, 8)).astype(np.float32) for n in (4, 2, 2))
    count = np.array([6, 4])
    net = model("0")
    cache = kept_keys.with_budget(2, 1).init(net.config, 2, 6).with_counts(jnp.asarray(count))
    layer = net.config.layers[0]
    cache = cache.write(layer, jnp.asarray(k), jnp.asarray(v))
    cache.attend(layer, jnp.asarray(q))
    expected = np.zeros((2, 2, 6))
    for b in range(2):
        for i in range(count[b]):
            for head in range(4):
                s = np.array([q[b, i, head] @ k[b, j, head // 2] for j in range(i + 1)], np.float64) / 8**0.5
                w = np.exp(s - s.max())
                expected[b, head // 2, : i + 1] += w / w.sum()
    sums = np.array(cache.scratch[0])
    np.testing.assert_allclose(sums[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(sums[1, :, :4], expected[1, :, :4], atol=1e-5)
    slab = cache.advance(6).slabs[0]
    for b in range(2):
        for head in range(2):
            past = expected[b, head, : count[b] - 1]
            kept = {*np.argsort(-past)[:2].tolist(), count[b] - 1}
            assert {int(p) for p in slab.position_BKR[b, head] if p >= 0} == kept
