"""Quantised models: what they compute, how close they are, and that they are kept as they are."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mixattn import Transformer, hf
from mixattn.hf.tensors import dotted_path
from mixattn.quantize import quantize, weight_bytes
from mixattn.smooth import SmoothedParams
from mixattn.uptrain import rewire
from tests.mixattn.tiny import SHORT, TINY, model, tokens, wired

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
FAMILIES = sorted(path.name for path in FIXTURES.iterdir() if (path / "config.json").exists())
SPARSE = wired("0_1s", n_layers=2, n_experts=3, experts_per_token=2, dense_layers=(0,))
DROPPING = dataclasses.replace(SPARSE, capacity_factor=1.0)
TIED = dataclasses.replace(SHORT, tied=True, qkv_bias=True, out_bias=True, ffn_bias=True, gated=False)


def run(net: Transformer, tokens_BT) -> np.ndarray:
    graphdef, params = nnx.split(net)
    return np.asarray(jax.jit(lambda p, t: nnx.merge(graphdef, p)(t))(params, tokens_BT))


def flat(net: Transformer) -> dict:
    return {dotted_path(path): p.get_value() for path, p in nnx.to_flat_state(nnx.split(net)[1])}


def restored(net: Transformer) -> Transformer:
    """The float model whose weights are those that the codes stand for."""
    codes, floats = (
        flat(net),
        nnx.split(Transformer(dataclasses.replace(net.config, quantize=""), rngs=nnx.Rngs(9))),
    )
    filled = []
    for path, param in nnx.to_flat_state(floats[1]):
        name, shape = dotted_path(path), param.get_value().shape
        filled.append((path, param.replace(_weights(name, shape, codes, net.config))))
    return nnx.merge(floats[0], nnx.from_flat_state(filled))


def _weights(name, shape, codes, config):
    if name in codes:
        return codes[name]
    stem = name.removesuffix(".kernel").removesuffix(".bias")
    above, _, last = stem.rpartition(".")
    heads, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    width = shape[-1]
    begin = {"q": 0, "k": heads, "v": heads + kv, "gate": 0, "up": width * config.gated}.get(last)
    if begin is not None:
        stem = f"{above}.{'qkv' if last in 'qkv' else 'gate_up'}"
    span = slice(begin or 0, (begin or 0) + width if begin is not None else None)
    if name.endswith(".bias"):
        return codes[f"{stem}.bias"][span]
    value, scale = codes[f"{stem}.codes"].astype(jnp.float32), codes[f"{stem}.scale"]
    if value.ndim == 3:
        return (value * scale[:, None])[..., span]
    whole = value * scale[:, None]
    return whole if name == "embed.table" else whole[span].T


CONFIGS = {"wiring": TINY, "mixture": SPARSE, "capacity": DROPPING, "tied": TIED}


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_within_half_a_code_and_the_rest_is_kept(name):
    net = model(CONFIGS[name])
    back = flat(restored(quantize(net, smooth=False)))
    for path, want in flat(net).items():
        want, got = np.float64(want), np.float64(back[path])
        axis = -1 if path == "embed.table" else -2
        if path in flat(quantize(net, smooth=False)) or path.endswith(".bias"):
            np.testing.assert_array_equal(got, want)
        else:
            step = np.abs(want).max(axis=axis, keepdims=True) / 127
            assert (np.abs(got - want) <= 0.501 * step).all(), path


def smoothed(net: Transformer) -> Transformer:
    """The float model with smoothed parameters."""
    read, (graphdef, state) = SmoothedParams(net.config, flat(net).__getitem__), nnx.split(net)
    filled = [(p, v.replace(jnp.asarray(read(dotted_path(p))))) for p, v in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@pytest.mark.parametrize("name", [*CONFIGS, *FAMILIES])
def test_smoothing_changes_weights_and_not_what_they_compute(name):
    net = model(CONFIGS[name]) if name in CONFIGS else hf.load(FIXTURES / name)[0]
    after = smoothed(net)
    assert any((flat(after)[path] != value).any() for path, value in flat(net).items())
    ids = tokens() % net.config.vocab_size
    want = run(net, ids)
    np.testing.assert_allclose(run(after, ids), want, atol=3e-4 * np.abs(want).max())


def test_smoothing_mends_outlying_channels():
    """One channel of the norms' output fifty times as large, as in trained models."""
    net = quantize(model(SHORT), "")
    graphdef, state = nnx.split(net)
    net = nnx.merge(graphdef, jax.tree.map(lambda x: x, state))
    for block in net.blocks:
        for norm in (block.attention_norm, block.ffn_norm):
            norm.gain[...] = norm.gain[...].at[5].mul(50)
        for part in (block.attention.q, block.attention.k, block.attention.v, block.ffn.gate, block.ffn.up):
            if part is not None:
                part.kernel[...] = part.kernel[...].at[5].mul(0.02)
    want = run(net, tokens())
    error = [np.std(run(quantize(net, smooth=on), tokens()) - want) / want.std() for on in (True, False)]
    assert error[0] < 0.4 * error[1]


def test_smoothed_blocks_are_read_in_order():
    read = SmoothedParams(SHORT, flat(model(SHORT)).__getitem__)
    read("blocks.1.ffn_norm.gain")
    with pytest.raises(ValueError, match="block 0 is asked for after block 1"):
        read("blocks.0.ffn_norm.gain")


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_float_model_with_the_same_weights_up_to_rounding_of_rows(name):
    """What is left is one rounding of each product's input."""
    small = quantize(model(CONFIGS[name]))
    got, want = run(small, tokens()), run(restored(small), tokens())
    error = np.sqrt(np.mean((got - want) ** 2)) / want.std()
    assert 1e-5 < error < 0.06


def test_a_wrong_scale_is_far_off():
    small = quantize(model(SHORT))
    small.blocks[1].ffn.down.scale[...] *= 1.5
    right, wrong = run(quantize(model(SHORT)), tokens()), run(small, tokens())
    assert np.sqrt(np.mean((right - wrong) ** 2)) / right.std() > 0.08


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantised_as_it_is_read_and_stays_close(family):
    small, config = hf.load(FIXTURES / family, quantize="int8")
    net, _ = hf.load(FIXTURES / family)
    assert config.quantize == "int8"
    for path, value in flat(quantize(net)).items():
        np.testing.assert_array_equal(value, flat(small)[path])
    want = np.load(FIXTURES / family / "want.npz")
    got = run(small, jnp.asarray(want["tokens"]))
    assert np.sqrt(np.mean((got - want["logits"]) ** 2)) / want["logits"].std() < 0.2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_quantised_checkpoint_comes_back_bit_for_bit(name, tmp_path):
    small = quantize(model(CONFIGS[name]))
    hf.save(small, tmp_path)
    again, config = hf.load(tmp_path)
    assert config == small.config
    assert hf.load(tmp_path, quantize="int8")[1] == config
    for path, value in flat(small).items():
        np.testing.assert_array_equal(value, flat(again)[path])
        assert value.dtype == flat(again)[path].dtype


def test_memory_is_about_a_quarter():
    big = dataclasses.replace(SHORT, d_model=256, d_ff=512, head_dim=64)
    net = model(big)
    assert 0.25 < weight_bytes(quantize(net)) / weight_bytes(net) < 0.27


def test_a_family_has_no_place_for_codes(tmp_path):
    with pytest.raises(ValueError, match="int8 codes, for which llama has no place"):
        hf.save(quantize(model(TIED)), tmp_path, architecture="llama")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_codes_of_another_type_are_refused(tmp_path, dtype):
    hf.save(quantize(model(SHORT)), tmp_path)
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    held["embed.table.codes"] = held["embed.table.codes"].astype(dtype)
    save_file(held, file)
    with pytest.raises(ValueError, match=r"embed\.table\.codes .*codes are I8"):
        hf.load(tmp_path)


def test_codes_in_a_float_checkpoint_are_refused(tmp_path):
    hf.save(quantize(model(SHORT)), tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["mixattn"]["quantize"] = ""
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"missing|quantised codes"):
        hf.load(tmp_path)


def test_unknown_methods_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match="quantize is 'int3'; it must be one of , int8"):
        quantize(model(SHORT), "int3")


def test_bfloat16_models_are_quantised_too():
    net = model(dataclasses.replace(SHORT, dtype="bfloat16"))
    got, want = run(quantize(net), tokens()), run(net, tokens())
    assert got.dtype == np.float32
    assert np.sqrt(np.mean((got - want) ** 2)) / want.std() < 0.08


def test_a_single_token_gives_the_bits_that_it_gives_in_a_batch():
    small = quantize(model(SHORT))
    whole = run(small, tokens(B=3, T=1))
    alone = np.concatenate([run(small, tokens(B=3, T=1)[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, whole, atol=1e-5)


def test_quantised_weights_are_not_averaged():
    with pytest.raises(ValueError, match="float weights"):
        rewire(quantize(model(SHORT)), "0_1_2")
