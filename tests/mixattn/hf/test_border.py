"""What comes in from a checkpoint is right, or refused in one sentence with file, field and value."""

import dataclasses
import json
import os
import stat

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mixattn import generate, hf
from mixattn.hf import checkpoint_dir
from mixattn.hf.translate import NOT_SERVED, read_config, write_config
from tests.mixattn.tiny import TINY, model, wired

PLAIN = wired("standard", n_layers=2, tied=True)


@pytest.fixture
def llama(tmp_path):
    hf.save(model(PLAIN), tmp_path / "llama", architecture="llama")
    return tmp_path / "llama"


def change(folder, name="config.json", **fields) -> None:
    path = folder / name
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(raw | fields))


def weights(folder, edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be a whole number from 1 up"),
        ({"hidden_size": None}, "hidden_size is null"),
        ({"hidden_size": True}, "hidden_size is True"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000; it must be a whole number from 1 to 4096",
        ),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is null"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "rope_scaling.factor is '4'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling.factor is 0"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_scaling.rope_type is"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.short_factor is None"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "rope_short has 1 factors for",
        ),
        ({"rope_theta": 0.5}, "rope_theta is 0.5; it must be above 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but this family rotates whole heads"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"hidden_act": 3}, "hidden_act is 3; it must be a text"),
        ({"layer_types": [["x"]]}, "layer_types is"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"model_type": "deepseek_v3"}, "keys and values are compressed"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised .*gptq, 4 bits.*GGUF"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "quantised .*awq, 4 bits"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised .*fp8"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised .*bitsandbytes"),
        ({"quantization_config": "int8"}, "quantization_config is 'int8'"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_wrong_value_in_config_json_is_refused_by_file_field_and_value(llama, fields, why):
    change(llama, **fields)
    with pytest.raises(ValueError, match=why) as error:
        hf.load(llama)
    assert str(llama) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", sorted(NOT_SERVED))
def test_a_family_that_does_not_fit_is_refused_with_the_reason(llama, family):
    change(llama, model_type=family)
    with pytest.raises(ValueError, match=f"{family}.*: its? .*; known are mixattn, llama"):
        hf.load(llama)


@pytest.mark.parametrize(
    "dtype", [np.int32, np.int8, np.uint8, ml_dtypes.float8_e4m3fn], ids=lambda d: d.__name__
)
def test_codes_are_not_taken_for_weights(llama, dtype):
    weights(llama, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(dtype)}))
    with pytest.raises(ValueError, match=r"model.norm.weight of .* has type .*quantised codes"):
        hf.load(llama)


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (["pytorch_model.bin"], "only pytorch_model.bin, which is not safetensors"),
        (["pytorch_model-00001-of-00002.bin"], "only pytorch_model-00001-of-00002.bin"),
        (["consolidated.00.pth"], "only consolidated.00.pth"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "and 1 more"),
    ],
)
def test_other_weight_files_are_named_with_the_way_to_convert_them(llama, there, named):
    (llama / "model.safetensors").unlink()
    for name in there:
        (llama / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=named) as error:
        hf.load(llama)
    assert "save_pretrained" in str(error.value)


@pytest.mark.parametrize(
    ("weight_map", "why"),
    [
        ({"a": "../model.safetensors"}, r"names the file '../model.safetensors'"),
        ({"a": 3}, "names the file 3"),
        ({"a": "model.bin"}, "names the file 'model.bin'"),
        ({"model.norm.gain": "model.safetensors"}, "says that model.safetensors has tensor model.norm.gain"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_names_files_beside_it_that_hold_what_it_says(llama, weight_map, why):
    change(llama, checkpoint_dir.INDEX, weight_map=weight_map)
    with pytest.raises(ValueError, match=why):
        hf.load(llama)


@pytest.mark.parametrize(
    ("file", "value", "why"),
    [
        ("generation_config.json", -1, "generation_config.json has eos_token_id=-1"),
        ("generation_config.json", "2", "generation_config.json has eos_token_id='2'"),
        ("generation_config.json", 61, "eos_token_id=61; ids are whole numbers from 0 to 60"),
        ("generation_config.json", [3, 400], r"eos_token_id=\[3, 400\]"),
        ("generation_config.json", True, "eos_token_id=True"),
        ("config.json", 1.0, "config.json has eos_token_id=1.0"),
    ],
)
def test_an_end_token_that_is_none_is_refused_by_file_and_value(llama, file, value, why):
    change(llama, file, eos_token_id=value)
    with pytest.raises(ValueError, match=why):
        hf.stop_ids(llama)


def test_more_end_tokens_than_the_engine_compares_are_refused_by_name(llama):
    from serving.model_engine import eos_ids

    change(llama, "generation_config.json", eos_token_id=list(range(12)))
    assert hf.stop_ids(llama) == list(range(12))
    with pytest.raises(
        ValueError, match=r"names 12 tokens that end a text .eos_token_id.; the engine compares 8"
    ):
        eos_ids(llama)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"temperature": "hot"}, "temperature='hot'; it must be a number"),
        ({"top_p": 2}, "top_p=2"),
        ({"do_sample": "no"}, "do_sample='no'"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
    ],
)
def test_sampling_defaults_out_of_range_are_refused_by_file_and_value(llama, fields, why):
    change(llama, "generation_config.json", **fields)
    with pytest.raises(ValueError, match=f"generation_config.json has {why}"):
        hf.generation_settings(llama)


def test_a_tied_model_with_another_head_in_its_file_keeps_that_head_and_says_so(llama):
    other = np.random.default_rng(0).standard_normal((61, 32)).astype(np.float32)
    weights(llama, lambda t: t.update({"lm_head.weight": other}))
    with pytest.warns(UserWarning, match="its head is tied, but holds another one, which is used"):
        read, config = hf.load(llama)
    assert not config.tied
    np.testing.assert_array_equal(read.lm_head.kernel[...], other.T)


def test_a_tied_model_may_hold_its_head_twice(llama):
    weights(llama, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert hf.load(llama)[1].tied


def test_files_get_the_permissions_that_new_files_get(tmp_path):
    old = os.umask(0o027)
    try:
        hf.save(model(TINY), tmp_path / "m")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "m").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_what_config_json_repeats_for_others_must_agree_with_ours(tmp_path):
    hf.save(model(TINY), tmp_path)
    change(tmp_path, hidden_size=64)
    with pytest.raises(ValueError, match=r"hidden_size is 64, but mixattn\.d_model is 32"):
        hf.load(tmp_path)


@pytest.mark.parametrize("tokens", [20, 21])
def test_learned_positions_end_where_their_table_ends(tokens):
    config = wired("standard", n_layers=1, positions="learned", max_positions=24)
    if 4 + tokens <= 24:
        assert len(generate(model(config), [[1, 2, 3, 4]], tokens)[0]) == tokens
        return
    with pytest.raises(ValueError, match="25 positions are needed; the model has learned 24"):
        generate(model(config), [[1, 2, 3, 4]], tokens)


def test_rotations_beyond_the_models_context_are_warned_of():
    config = wired("standard", n_layers=1, max_positions=24)
    with pytest.warns(UserWarning, match="sequences of 30 tokens; the model was made for 24 positions"):
        generate(model(config), [[1] * 10], 20)


def test_dynamic_scaling_is_that_of_the_longest_sequence_from_its_first_token_on():
    """One length for all of it: a key that is stored never turns."""
    config = wired("standard", n_layers=2, rope_scaling="dynamic", rope_factor=2.0, max_positions=12)
    [new] = generate(model(config), [[1, 2, 3]], 17)
    fixed = model(
        wired(
            "standard", n_layers=2, rope_scaling="dynamic", rope_factor=2.0, max_positions=12, rope_length=20
        )
    )
    nnx.update(fixed, nnx.split(model(config))[1])
    row = [1, 2, 3]
    for _ in range(17):
        row.append(
            int(jax.numpy.argmax(fixed(jax.numpy.asarray([row + [0] * (20 - len(row))]))[0, len(row) - 1]))
        )
    assert new == row[3:]


def test_weights_that_are_no_file_or_only_a_pointer_are_refused_by_what_they_are(llama):
    weights_file = llama / "model.safetensors"
    weights_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n")
    with pytest.raises(ValueError, match=r"model\.safetensors only says where Git LFS has the weights"):
        hf.load(llama)
    weights_file.unlink()
    weights_file.symlink_to("blobs/1234")
    with pytest.raises(ValueError, match=r"model\.safetensors is a link to blobs/1234, which is not there"):
        hf.load(llama)
    weights_file.unlink()
    weights_file.mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors is not a file"):
        hf.load(llama)


def test_gemma_3_has_no_soft_cap_on_scores_in_either_direction(tmp_path):
    """transformers' Gemma 3 reads `attn_logit_softcapping` and computes without it."""
    raw = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    raw |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = read_config("gemma3_text", raw)
    capped = dataclasses.replace(config, attention_softcap=5.0)
    with pytest.raises(ValueError, match=r"gemma3_text cannot express .*attn_logit_softcapping=5.0"):
        write_config("gemma3_text", capped)
    with pytest.raises(ValueError, match=r"attn_logit_softcapping=50.0.* must be null"):
        read_config("gemma3_text", raw | {"attn_logit_softcapping": 50.0})
