"""Checkpoints written by earlier releases still load, and compute the same function."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mixattn import hf

# One directory per release, named after the commit whose code saved the model and computed its logits.
FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("native_*"))


def stored(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """tokens_BT, and the logits_BTV that the release which saved the model computed for them."""
    with np.load(directory / "want.npz") as want:
        return want["tokens"], want["logits"]


def difference(model, directory: Path) -> float:
    tokens_BT, want_BTV = stored(directory)
    graphdef, params = nnx.split(model)
    got_BTV = jax.jit(lambda params, tokens_BT: nnx.merge(graphdef, params)(tokens_BT))(params, tokens_BT)
    assert got_BTV.shape == want_BTV.shape
    return float(np.abs(got_BTV - want_BTV).max())


@pytest.mark.parametrize("directory", FIXTURES, ids=lambda path: path.name)
def test_an_old_checkpoint_loads_and_gives_the_same_logits(directory):
    model, config = hf.load(directory)
    assert config.wiring == "0s_0s"
    assert difference(model, directory) < 1e-6


def test_the_comparison_notices_a_changed_weight():
    directory = FIXTURES[0]
    model, _ = hf.load(directory)
    model.blocks[0].attention.v.kernel[...] *= 1.1
    assert difference(model, directory) > 1e-4
