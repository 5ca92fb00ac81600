"""A GGUF file is read as the Hugging Face directory that it was made from, or refused in one sentence."""

import json
import os
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, trainers

from mixattn import hf
from mixattn.hf import gguf_file, gguf_rope, translate
from mixattn.rope import rope_frequencies
from mixattn.text import chat_prompt
from tests.mixattn import gguf_files
from tests.mixattn.gguf_files import write_gguf, write_vocabulary
from tests.parity.load_peak import measured

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text")
LLAMA31 = {
    "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    | {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
}


def parameters(model):
    return nnx.to_flat_state(nnx.split(model)[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_gives_the_model_it_was_made_from(family, tmp_path):
    model, config = hf.load(FIXTURES / family)
    again, read = hf.load(write_gguf(FIXTURES / family, tmp_path / "model.gguf"))
    assert again.config == read
    for (path, one), (_, other) in zip(parameters(model), parameters(again), strict=True):
        tolerance = 2e-7 if config.norm_unit_offset and "norm" in str(path) else 0
        np.testing.assert_allclose(
            other.get_value(), one.get_value(), rtol=0, atol=tolerance, err_msg=str(path)
        )
    # What each computes follows from weights and config; the factors of a rotary scaling have many spellings.
    ours, theirs = translate.effective_fields(read), translate.effective_fields(config)
    if config.rope_scaling == "llama3":
        np.testing.assert_allclose(
            rope_frequencies(read, sliding=False), rope_frequencies(config, sliding=False), rtol=1e-5
        )
        spelled = {"rope_low", "rope_high", "rope_original"}
        ours, theirs = ({k: v for k, v in fields.items() if k not in spelled} for fields in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == (pytest.approx(theirs[name]) if isinstance(value, float) else theirs[name]), name


def test_rows_that_were_not_permuted_back_are_noticed(tmp_path, monkeypatch):
    path = write_gguf(FIXTURES / "llama", tmp_path / "model.gguf")
    model, _ = hf.load(path)
    monkeypatch.setattr("mixattn.hf.gguf_tensors._halves", lambda value, heads: value)
    wrong, _ = hf.load(path)
    tokens = jnp.arange(20)[None]
    assert float(jnp.abs(wrong(tokens) - model(tokens)).max()) > 1e-2


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_rows_are_what_the_library_dequantises(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "CHUNK_ELEMENTS", 64)  # several chunks
    values = np.random.default_rng(0).standard_normal((7, 96), np.float32)
    type = gguf.GGMLQuantizationType[kind]
    data = gguf.quants.quantize(values, type)
    out = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    out.add_tensor("x", data, raw_dtype=type)
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    file = gguf_file.GGUFFile(tmp_path / "x.gguf")
    want = gguf.quants.dequantize(data, type)
    np.testing.assert_array_equal(file.read("x", np.dtype(np.float32)), want)
    np.testing.assert_array_equal(file.read("x", np.dtype(jnp.bfloat16)), want.astype(jnp.bfloat16))
    assert np.abs(want - values).max() < 0.4


def _blocks(kind: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Random rows of quantised blocks; scales are stored as float16 and kept finite."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks, size), np.uint8)
    return np.where(raw & 0x7C == 0x7C, raw ^ 0x40, raw).reshape(rows, blocks * size)


def _written(path, kind: str, data: np.ndarray) -> gguf_file.GGUFFile:
    out = gguf.GGUFWriter(path, "llama")
    out.add_tensor("x", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    return gguf_file.GGUFFile(path)


EVERY_KIND = sorted(type.name for type in gguf.quants._type_traits)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_type_that_the_library_knows_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "CHUNK_ELEMENTS", 300)
    data = _blocks(kind, rows=5, blocks=3)
    read = _written(tmp_path / "x.gguf", kind, data).read("x", np.dtype(np.float32))
    want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert read.shape == want.shape
    np.testing.assert_array_equal(read, want)


def _six_bits(raw: np.ndarray, j: int) -> tuple[int, int]:
    """Scale and minimum of sub-block j of a Q4_K block, from its 12 bytes."""
    if j < 4:
        return raw[j] & 63, raw[j + 4] & 63
    return (raw[j + 4] & 15) | (raw[j - 4] >> 6) << 4, (raw[j + 4] >> 4) | (raw[j] >> 6) << 4


def _q4_k(block: np.ndarray) -> list[float]:
    scale, least = block[:4].view(np.float16).astype(np.float64)
    values = []
    for j in range(8):
        step, shift = _six_bits(block[4:16].astype(int), j)
        quants = block[16 + 32 * (j // 2) : 48 + 32 * (j // 2)].astype(int)
        values += [scale * step * (q >> 4 if j % 2 else q & 15) - least * shift for q in quants]
    return values


def _q6_k(block: np.ndarray) -> list[float]:
    low, high, scales = block[:128].astype(int), block[128:192].astype(int), block[192:208].view(np.int8)
    [scale] = block[208:].view(np.float16).astype(np.float64)
    values = []
    for i in range(256):
        half, within = divmod(i, 128)
        quarter, lane = divmod(within, 32)
        byte = low[64 * half + 32 * (quarter % 2) + lane]
        four = byte >> 4 if quarter >= 2 else byte & 15
        two = high[32 * half + lane] >> 2 * quarter & 3
        values.append(scale * int(scales[i // 16]) * ((four | two << 4) - 32))
    return values


@pytest.mark.parametrize(("kind", "decode"), [("Q4_K", _q4_k), ("Q6_K", _q6_k)])
def test_the_common_k_types_are_read_as_their_format_says(kind, decode, tmp_path):
    """The blocks decoded value by value, in float64."""
    data = _blocks(kind, rows=3, blocks=2, seed=1)
    read = _written(tmp_path / "x.gguf", kind, data).read("x", np.dtype(np.float32))
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    want = [[x for block in row.reshape(-1, size) for x in decode(block)] for row in data]
    np.testing.assert_allclose(read, want, rtol=1e-5, atol=1e-6)


def test_the_asked_dtype_is_the_models(tmp_path):
    path = write_gguf(FIXTURES / "qwen2", tmp_path / "model.gguf")
    model, config = hf.load(path, dtype="bfloat16")
    assert config.dtype == "bfloat16"
    assert model.embed.table[...].dtype == jnp.bfloat16


@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_scaling_is_recovered_from_its_factors(head_dim, tmp_path):
    rope = LLAMA31["rope_parameters"] | {"original_max_position_embeddings": 8192}
    out = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    out.add_tensor("rope_freqs.weight", gguf_files.llama3_factors(head_dim, rope))
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    found = gguf_rope.llama3_scaling(gguf_file.GGUFFile(tmp_path / "x.gguf"), 500_000.0, head_dim)
    assert found["low_freq_factor"] == pytest.approx(1, abs=1e-3)
    assert found["high_freq_factor"] == pytest.approx(4, abs=1e-3)
    assert found["factor"] == 8


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported"),
        ({"split.count": 3, "split.no": 1}, "is part 2 of 3"),
    ],
)
def test_unsupported_metadata_is_one_sentence(change, sentence, tmp_path):
    path = write_gguf(FIXTURES / "mistral", tmp_path / "model.gguf", extra=change)
    with pytest.raises(ValueError, match=sentence):
        hf.load(path)


def test_an_unknown_architecture_is_one_sentence(tmp_path, run_module):
    out = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    out.add_tensor("token_embd.weight", np.zeros((3, 4), np.float32))
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    done = run_module("mixattn.hf", "convert", f"--from={tmp_path / 'x.gguf'}", f"--to={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "architecture 'mamba'; known are llama" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = write_gguf(FIXTURES / "llama", tmp_path / "model.gguf").read_bytes()
    for keep in (0, 3, 4, 20, 100, 400, len(whole) // 2, len(whole) - 40):
        path = tmp_path / f"{keep}.gguf"
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"not a whole GGUF file|truncated|not GGUF"):
            hf.load(path)


def test_a_file_with_random_bytes_changed_is_read_or_refused(tmp_path):
    """Never another exception, and never more memory than the file describes."""
    whole = write_gguf(FIXTURES / "llama", tmp_path / "model.gguf").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for i in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(8, 2500, 3):
            damaged[at] = rng.integers(256)
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(damaged)
        try:
            gguf_file.GGUFFile(path)
        except ValueError:
            refused += 1
    assert refused > 20


def test_an_offset_beyond_the_file_is_refused(tmp_path):
    path = write_gguf(FIXTURES / "llama", tmp_path / "model.gguf")
    whole = bytearray(path.read_bytes())
    field = gguf.GGUFReader(path).tensors[2].field
    at = field.offset + sum(int(part.nbytes) for part in field.parts[:5])
    whole[at : at + 8] = (2**62).to_bytes(8, "little")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"not a whole GGUF file|truncated"):
        hf.load(path)


# ---- tokenizers ----

TEXT = [
    "the cat sat on the mat",
    "a cat, a mat; 12345 times",
    "über naïve café",
    "so  many   spaces\n\nhere\t",
] * 9
NASTY = "the cat's 007 mats\r\n  über\u200d😀 \u0301x<|im_end|>  the\n\n\tend "


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE())
    digits, words = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence([digits, words]), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|im_end|>", "<s>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def metadata(tokenizer: Tokenizer, pre: str, **more) -> dict:
    state = json.loads(tokenizer.to_str())
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    merges = [" ".join(merge) for merge in state["model"]["merges"]]
    types = [3 if i < 2 else 1 for i in range(len(tokens))]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": merges,
        "ggml.eos_token_id": 0,
        "ggml.bos_token_id": 1,
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        **more,
    }


def test_byte_level_ids_are_those_of_the_tokenizer_it_was_made_from(byte_level, tmp_path):
    path = write_vocabulary(tmp_path / "v.gguf", metadata(byte_level, "smollm"))
    read = hf.load_tokenizer(path)
    for text in (*TEXT[:4], NASTY):
        assert read.encode(text).ids == byte_level.encode(text).ids
        assert read.decode(read.encode(text).ids, skip_special_tokens=False) == text


def test_settings_beside_the_tokenizer_are_carried_over(byte_level, tmp_path):
    path = write_vocabulary(tmp_path / "v.gguf", metadata(byte_level, "llama-bpe"))
    assert hf.load_tokenizer(path).encode("the").ids[0] == 1  # llama-bpe adds the begin-of-text token
    assert hf.stop_ids(path) == [0]
    assert chat_prompt(path, [{"role": "user", "content": "Hello"}]) == "<s>Hello"
    path = write_vocabulary(
        tmp_path / "w.gguf", metadata(byte_level, "llama-bpe", **{"ggml.add_bos_token": False})
    )
    assert hf.load_tokenizer(path).encode("the").ids[0] != 1


def test_unknown_and_inconsistent_tokenizers_are_one_sentence(byte_level, tmp_path):
    good = metadata(byte_level, "gpt-2")
    cases = {
        "pre-tokenizer 'klingon'": {"ggml.pre": "klingon"},
        "tokenizer model 'rwkv'": {"ggml.model": "rwkv"},
        "340 types|types": {"ggml.token_type": [1, 1]},
        "names a token that is not there": {"ggml.merges": ["Ġ zzzz"]},
    }
    for sentence, change in cases.items():
        path = write_vocabulary(tmp_path / f"{len(sentence)}.gguf", good | change)
        with pytest.raises(ValueError, match=sentence):
            hf.load_tokenizer(path)


def test_sentencepiece_merges_follow_scores_with_bytes_as_a_fallback(tmp_path):
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "c",
        "ab",
        "bc",
        "▁a",
    ]
    types = [2, 3, 3, *[6] * 256, *[1] * 7]
    scores = [0.0] * 259 + [-9.0, -9.5, -9.6, -9.7, -2.0, -1.0, -3.0]
    meta = {"ggml.model": "llama", "ggml.tokens": pieces, "ggml.token_type": types, "ggml.scores": scores}
    path = write_vocabulary(tmp_path / "v.gguf", meta | {"ggml.bos_token_id": 1, "ggml.eos_token_id": 2})
    read = hf.load_tokenizer(path)
    assert [read.id_to_token(i) for i in read.encode("abc").ids] == ["<s>", "▁a", "bc"]  # bc before ab
    assert [read.id_to_token(i) for i in read.encode("ab é").ids][-3:] == ["▁", "<0xC3>", "<0xA9>"]
    assert read.decode(read.encode("ab é").ids) == "ab é"


# ---- conversion, and memory ----


def test_conversion_keeps_model_tokenizer_and_settings(byte_level, tmp_path, run_module):
    vocabulary = {f"tokenizer.{k}": v for k, v in metadata(byte_level, "smollm").items()}
    size = {"vocab_size": 37, "tokenizer.ggml.model": ""}
    path = write_gguf(FIXTURES / "qwen2", tmp_path / "m.gguf", config=size, extra=vocabulary)
    done = run_module("mixattn.hf", "convert", f"--from={path}", f"--to={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "qwen2 -> mixattn" in done.stdout
    (one, config), (other, again) = hf.load(path), hf.load(tmp_path / "out")
    assert config == again
    for (_, a), (_, b) in zip(parameters(one), parameters(other), strict=True):
        np.testing.assert_array_equal(a.get_value(), b.get_value())
    assert hf.load_tokenizer(tmp_path / "out").encode(NASTY).ids == hf.load_tokenizer(path).encode(NASTY).ids
    assert hf.stop_ids(tmp_path / "out") == hf.stop_ids(path) == [0]
    assert chat_prompt(tmp_path / "out", [{"role": "user", "content": "x"}]) == "<s>x"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_peak_memory_at_load_is_at_most_the_weights_and_15_percent(tmp_path):
    from mixattn import ModelConfig, Transformer

    size = {"d_model": 512, "n_heads": 8, "n_kv_heads": 8, "head_dim": 64, "d_ff": 2048, "vocab_size": 16_000}
    config = ModelConfig(n_layers=12, **size, tied=True)  # 233 MB
    hf.save(Transformer(config, rngs=nnx.Rngs(0)), tmp_path / "native")
    assert measured(str(tmp_path / "native"))["peak_over_weights"] <= 1.15
