"""Compares our logits with those of transformers on checkpoints that it wrote: whole, cached, round trip.

The cases under `fixtures/` are committed and need no torch. `make parity` sets MIXATTN_PARITY to a directory
with more cases, and transformers then loads what `test_what_was_read_can_be_written_back` writes there.
"""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import hf
from mixattn.cache import Ring
from mixattn.generation import prepared
from mixattn.hf.families import FAMILIES
from mixattn.hf.json_file import read_object as read_json
from mixattn.hf.translate import read_config, write_config

ROOT = Path(os.environ.get("MIXATTN_PARITY") or Path(__file__).parent / "fixtures")
CASES = sorted(path.parent.name for path in ROOT.glob("*/want.npz"))
TOLERANCE = 1e-4


@functools.cache
def loaded(case: str):
    model, _ = hf.load(ROOT / case)
    want = np.load(ROOT / case / "want.npz")
    return model, jnp.asarray(want["tokens"]), want["logits"]


@functools.partial(jax.jit, static_argnames="graphdef")
def whole(graphdef, params, tokens_BT):
    return nnx.merge(graphdef, params)(tokens_BT)


@functools.partial(jax.jit, static_argnames="graphdef")
def cached(graphdef, params, tokens_BT):
    """Prefill of 7 tokens, then one token at a time."""
    model = prepared(nnx.merge(graphdef, params), tokens_BT.shape[1])
    B, T = tokens_BT.shape
    first = model.forward(tokens_BT[:, :7], cache=Ring.init(model.config, B, T))

    def step(cache, token_B):
        out = model.forward(token_B[:, None], cache=cache)
        return out.cache, out.hidden_BTD[:, 0]

    _, rest_TBD = jax.lax.scan(step, first.cache, tokens_BT[:, 7:].T)
    return model.head(jnp.concatenate([first.hidden_BTD, jnp.swapaxes(rest_TBD, 0, 1)], axis=1))


def test_every_architecture_has_a_case():
    assert {read_json(ROOT / case / "config.json")["model_type"] for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, record_property):
    model, tokens_BT, want = loaded(case)
    got = whole(*nnx.split(model), tokens_BT)
    record_property("difference", float(np.abs(got - want).max()))
    np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_gives_the_same(case):
    model, tokens_BT, want = loaded(case)
    np.testing.assert_allclose(cached(*nnx.split(model), tokens_BT), want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_can_be_written_back(case, tmp_path):
    """In the family's own layout: the same config, the same tensors under the same names."""
    model, _, _ = loaded(case)
    raw = read_json(ROOT / case / "config.json")
    back = ROOT / case / "back" if "MIXATTN_PARITY" in os.environ else tmp_path
    hf.save(model, back, architecture=raw["model_type"])
    again, config = hf.load(back)
    assert write_config(raw["model_type"], config) == write_config(raw["model_type"], model.config)
    for one, other in zip(
        jax.tree.leaves(nnx.split(model)[1]), jax.tree.leaves(nnx.split(again)[1]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_becomes_a_native_one(case, tmp_path):
    model, tokens_BT, want = loaded(case)
    hf.save(model, tmp_path)
    native, config = hf.load(tmp_path)
    assert config == model.config == read_config(*_type_and_raw(case))
    np.testing.assert_allclose(whole(*nnx.split(native), tokens_BT), want, atol=TOLERANCE, rtol=0)


def _type_and_raw(case):
    raw = read_json(ROOT / case / "config.json")
    return raw["model_type"], raw
