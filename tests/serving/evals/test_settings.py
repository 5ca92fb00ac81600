import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer, generate
from serving.evals import settings
from serving.evals.scoring import ScoringModel

CONFIG = ModelConfig(
    n_layers=2,
    kv_wiring="0_1",
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=50,
    dtype="float32",
)


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, rngs=nnx.Rngs(0))


def words(messages):
    return [int(word) for word in messages[-1]["content"].split()]


def test_log_probabilities_are_those_of_one_teacher_forced_pass(model):
    scorer = ScoringModel(model, words, lambda text: [int(x) for x in text.split()], str)
    prompt, texts = [3, 4, 5, 6, 7], ["8 9 10", "11", "12 13 14 15 16 17", ""]
    messages = [{"role": "user", "content": " ".join(map(str, prompt))}]
    found = asyncio.run(scorer.likelihoods(messages, texts))
    for text, each in zip(texts, found):
        more = [int(x) for x in text.split()]
        assert each.tokens == len(more)
        logp = jax.nn.log_softmax(model(jnp.asarray([prompt + more], jnp.int32))[0])
        expected = sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(more))
        assert each.log_probability == pytest.approx(expected, abs=1e-4)


def test_a_sliding_copy_has_the_same_weights_and_every_layer_slides(model):
    copy = settings.sliding(model, 4)
    assert copy.config.kv_wiring == "0s_1s"
    assert all(layer.window == 4 for layer in copy.config.layers)
    one, other = (jax.tree.leaves(nnx.state(each)) for each in (model, copy))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_answers_of_a_padded_batch_are_those_of_generate(model):
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10, 11]]
    alone = generate(model, prompts, 12)
    made = settings.make("full", model, 8)
    assert settings.answer(made, prompts, length=16, max_new_tokens=12, stop=()) == alone
    stopped = settings.answer(made, prompts, length=16, max_new_tokens=12, stop=(alone[0][3],))
    assert stopped[0] == alone[0][: alone[0].index(alone[0][3])]


@pytest.mark.parametrize(
    ("name", "budget", "said"), [("half", 8, "is not one of"), ("heavy", 1, "at least 2")]
)
def test_other_settings_are_refused(model, name, budget, said):
    with pytest.raises(ValueError, match=said):
        settings.make(name, model, budget)
