"""Checkpoints on disk are complete or refused, and every refusal names what disagrees."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import load_file, save_file

from mixattn import hf
from mixattn.hf import checkpoint_dir
from mixattn.hf.families import FAMILIES
from mixattn.hf.translate import read_config, write_config
from tests.mixattn.tiny import TINY, logits, model, tokens, wired

SPARSE = wired("0_1s", n_layers=2, n_experts=3, experts_per_token=2, dense_layers=(0,))


@pytest.fixture
def saved(tmp_path):
    hf.save(model(TINY), tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory, change) -> None:
    tensors = load_file(directory / checkpoint_dir.SINGLE)
    change(tensors)
    save_file(tensors, directory / checkpoint_dir.SINGLE)


def reconfigure(directory, model_type=None, **fields) -> None:
    """Changes fields of the model; what repeats them for other programs follows."""
    raw = json.loads((directory / checkpoint_dir.CONFIG).read_text())
    raw["mixattn"] |= fields
    kept = {"model_type", "architectures", "auto_map", "mixattn"}
    raw = {name: value for name, value in raw.items() if name in kept} | (
        {"model_type": model_type} if model_type else {}
    )
    (directory / checkpoint_dir.CONFIG).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "config", [TINY, SPARSE, dataclasses.replace(TINY, dtype="bfloat16")], ids=lambda c: c.dtype
)
def test_a_saved_model_comes_back_bit_for_bit(config, tmp_path):
    hf.save(model(config), tmp_path)
    again, read = hf.load(tmp_path)
    assert read == config
    for one, other in zip(
        jax.tree.leaves(nnx.split(model(config))[1]), jax.tree.leaves(nnx.split(again)[1]), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_shards_hold_what_one_file_holds(saved, tmp_path):
    whole = load_file(saved / checkpoint_dir.SINGLE)
    checkpoint_dir.write(
        tmp_path,
        json.loads((saved / checkpoint_dir.CONFIG).read_text()),
        whole.items(),
        None,
        shard_bytes=6000,
    )
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again, _ = hf.load(tmp_path)
    np.testing.assert_array_equal(logits(TINY, tokens(), nnx.split(again)[1]), logits(TINY, tokens()))


def test_saving_over_an_old_checkpoint_leaves_nothing_of_it(saved):
    checkpoint_dir.write(saved, {}, [(str(i), np.zeros(9)) for i in range(3)], None, shard_bytes=80)
    hf.save(model(SPARSE), saved)
    names = [checkpoint_dir.CONFIG, checkpoint_dir.SINGLE, "modeling_mixattn.py"]
    assert sorted(path.name for path in saved.iterdir()) == names
    assert hf.load(saved)[1] == SPARSE


def test_a_save_that_fails_halfway_is_not_a_checkpoint(saved):
    def breaks():
        yield "embed.table", np.zeros((2, 2))
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoint_dir.write(saved, {"model_type": "mixattn"}, breaks(), None)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        hf.load(saved)
    assert not list(saved.glob(".*partial"))


def test_weights_go_straight_to_the_dtype_asked_for(saved):
    half, config = hf.load(saved, dtype="bfloat16")
    assert config.dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(nnx.split(half)[1])} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(logits(config, tokens(), nnx.split(half)[1]), logits(TINY, tokens()), atol=0.1)


def test_each_parameter_goes_where_its_sharding_says(saved):
    seen = []

    def shardings(path, shape):
        seen.append((path, shape))
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])

    hf.load(saved, shardings=shardings)
    assert ("blocks.0.attention.k.kernel", (32, 16)) in seen


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda d: rewrite(d, lambda t: t.pop("embed.table")),
            r"embed\.table of shape \(61, 32\) is missing",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update(junk=np.zeros(3))),
            r"tensor junk of shape \(3,\): the model has no",
        ),
        (
            lambda d: rewrite(d, lambda t: t.update({"embed.table": np.zeros((61, 33), np.float32)})),
            r"embed\.table has shape \(61, 33\); the model needs \(61, 32\)",
        ),
        (lambda d: reconfigure(d, d_ff=49), r"has shape \(48, 32\); the model needs \(49, 32\)"),
        (lambda d: reconfigure(d, model_type="rwkv"), "model_type is 'rwkv'; known are mixattn, llama"),
        (lambda d: reconfigure(d, colour="red"), "a field 'colour' that ModelConfig does not have"),
        (lambda d: reconfigure(d, kv_wiring="0_1"), "2 entries but n_layers is 6"),
        (lambda d: (d / checkpoint_dir.CONFIG).write_text("{"), r"config\.json is not JSON"),
        (lambda d: (d / checkpoint_dir.CONFIG).write_text("[]"), "holds a list, not an object"),
        (lambda d: (d / checkpoint_dir.CONFIG).unlink(), r"has no config\.json"),
        (lambda d: (d / checkpoint_dir.SINGLE).unlink(), r"has no model\.safetensors"),
        (
            lambda d: (d / checkpoint_dir.SINGLE).write_bytes((d / checkpoint_dir.SINGLE).read_bytes()[:999]),
            "not a complete safetensors",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(saved, spoil, why):
    spoil(saved)
    with pytest.raises(ValueError, match=why) as error:
        hf.load(saved)
    assert "\n" not in str(error.value)


def test_the_tokenizer_travels_with_the_model(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    hf.save(model(TINY), tmp_path, tokenizer)
    assert hf.load_tokenizer(tmp_path).get_vocab() == {"a": 0, "b": 1}
    (tmp_path / checkpoint_dir.TOKENIZER).write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        hf.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("said", "ids"), [({"eos_token_id": 7}, [7]), ({"eos_token_id": [7, 9]}, [7, 9]), ({}, [])]
)
def test_stop_ids_travel_with_the_model(said, ids, tmp_path):
    hf.save(model(TINY), tmp_path, extra=said)
    assert hf.stop_ids(tmp_path) == ids
    assert hf.load(tmp_path)[1] == TINY


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_refuses_a_model_it_cannot_express_by_naming_the_field(model_type):
    with pytest.raises(ValueError, match=f"{model_type} cannot express "):
        write_config(model_type, TINY)


def test_llama_names_the_first_field_it_cannot_express():
    with pytest.raises(ValueError, match="llama cannot express kv_wiring='0_0'"):
        write_config("llama", wired("cla", n_layers=2))


LLAMA = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 9,
}


def test_old_and_new_spellings_of_rope_mean_the_same():
    scaling = {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}}
    new = LLAMA | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}
    assert read_config("llama", old) == read_config("llama", new)
    assert read_config("llama", old).rope_scaling == "llama3"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (LLAMA | {"rope_scaling": {"type": "mrope", "factor": 2.0}}, "rope type 'mrope' is not supported"),
        (LLAMA | {"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "has no field 'vocab_size'"),
    ],
)
def test_features_we_do_not_have_are_refused(raw, why):
    with pytest.raises(ValueError, match=why):
        read_config("llama", raw)


def test_convert_goes_both_ways_on_the_command_line(tmp_path, run_module):
    plain = wired("standard", n_layers=2)
    hf.save(model(plain), tmp_path / "ours")
    one = run_module(
        "mixattn.hf", "convert", f"--from={tmp_path}/ours", f"--to={tmp_path}/llama", "--architecture=llama"
    )
    assert one.returncode == 0, one.stderr
    two = run_module(
        "mixattn.hf", "convert", f"--from={tmp_path}/llama", f"--to={tmp_path}/shared", "--wiring=cla"
    )
    assert two.returncode == 0, two.stderr
    assert hf.load(tmp_path / "shared")[1].wiring == "0_0"
    shutil.rmtree(tmp_path / "llama")
    gone = run_module("mixattn.hf", "convert", f"--from={tmp_path}/llama", f"--to={tmp_path}/x")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert "has no config.json" in gone.stderr
