"""The streams are those of the model's own forward pass, and the two halves of a block add up to the next."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.mixattn.tiny import SHORT, TINY, logits, model, tokens
from train.experiments.teacher import streams


@pytest.mark.parametrize("config", [SHORT, TINY], ids=["short", "shared"])
def test_the_last_stream_gives_the_models_logits(config):
    m, rows = model(config), tokens(2, 9)
    found = streams(m, rows)
    assert found.inputs.shape == (config.n_layers + 1, 2, 9, config.d_model)
    assert found.middles.shape == (config.n_layers, 2, 9, config.d_model)
    np.testing.assert_allclose(m.head(m.final_norm(found.inputs[-1])), logits(config, rows), atol=2e-5)


def test_the_second_half_of_a_block_leads_from_its_middle_to_the_next_input():
    m, found = model(SHORT), streams(model(SHORT), tokens(2, 9))
    for i, block in enumerate(m.blocks):
        np.testing.assert_allclose(block.feed_forward(found.middles[i])[0], found.inputs[i + 1], atol=1e-5)
        assert jnp.abs(found.middles[i] - found.inputs[i]).max() > 1e-3  # attention does something
