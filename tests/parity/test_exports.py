"""What we export says the same elsewhere: every family with every option, and the native layout.

`make parity` sets MIXATTN_PARITY: each export is written there with our logits and greedy tokens, and
`torch_exports.py` opens it with transformers. Without it the exports are read back by us only, a few of them.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixattn import Transformer, generate, hf
from mixattn.hf.companions import Companions
from mixattn.hf.families import FAMILIES
from tests.parity import export_cases

FOLDER = os.environ.get("MIXATTN_PARITY")
CASES = {**export_cases.expressed(), **{name: ("mixattn", c) for name, c in export_cases.NATIVE.items()}}
FEW = [name for name in CASES if name.endswith("-plain")] + ["native_offset", "native_gemma"]
NEW_TOK = 12
TEXTS = ["", "Hello world", " two  spaces, é and 42\n", "if x == 1:\n\treturn"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 300 entries with an end and a padding token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([Path(__file__).read_text()], trainer)
    return made


def random_model(config) -> Transformer:
    """Norms and biases differ from their starting values, so that nobody can forget them."""
    model = Transformer(config, rngs=nnx.Rngs(7))
    rng = np.random.default_rng(7)
    graphdef, params = nnx.split(model)
    noise = lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(noise, params))


def logits_f64(folder: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """The logits of the export at `folder`, every step in float64: two roundings are not compared."""
    with jax.enable_x64():
        graphdef, params = nnx.split(hf.load(folder, dtype="float64")[0])
        logits = np.asarray(_logits(graphdef, params, jnp.asarray(tokens_BT)))
    assert logits.dtype == np.float64
    return logits


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, tokens_BT):
    return nnx.merge(graphdef, params)(tokens_BT)


def assert_same_weights(one: Transformer, other: Transformer) -> None:
    a, b = (jax.tree_util.tree_leaves_with_path(nnx.split(model)[1]) for model in (one, other))
    assert [path for path, _ in a] == [path for path, _ in b]
    for (path, x), (_, y) in zip(a, b):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def greedy(model: Transformer, tokens_T: np.ndarray) -> list[int]:
    """By full recomputation of the whole row, so that the cache of the other side is compared with none."""
    graphdef, params = nnx.split(model)
    T = len(tokens_T)
    row = jnp.asarray([*tokens_T, *[0] * NEW_TOK])[None]
    return np.asarray(_greedy(graphdef, params, row, T))[0, T:].tolist()


@functools.partial(jax.jit, static_argnums=0)
def _greedy(graphdef, params, row_1T, T):
    def step(i, row_1T):
        best = jnp.argmax(nnx.merge(graphdef, params)(row_1T)[0, i - 1]).astype(row_1T.dtype)
        return row_1T.at[0, i].set(best)

    return jax.lax.fori_loop(T, T + NEW_TOK, step, row_1T)


def generates(name: str, config) -> bool:
    """Generation depends on the family more than on its options; these two scalings depend on the length."""
    chosen = name.endswith(("-plain", "-sliding", "-mixed_windows", "-tied", "-yarn")) or "-" not in name
    return chosen and config.rope_scaling not in ("longrope", "dynamic")


@pytest.mark.parametrize("name", CASES if FOLDER else FEW)
def test_an_export_is_read_back_the_same(name, tokenizer, tmp_path):
    family, config = CASES[name]
    folder = Path(FOLDER) / "exports" / name if FOLDER else tmp_path
    model = random_model(config)
    tokens = np.random.default_rng(3).integers(2, config.vocab_size, (2, 19)).astype(np.int32)
    new = greedy(model, tokens[0]) if generates(name, config) else []
    # A token that comes up ends the text, so that where the other side stops shows whether it knows.
    eos = new[4] if new else 0
    settings = {"pad_token": "<|pad|>"}
    beside = Companions(tokenizer, settings, {"default": "{{ messages[0].content }}"}, {"eos_token_id": eos})
    hf.save(model, folder, architecture=family, companions=beside)
    again, read = hf.load(folder)
    assert dataclasses.replace(read, kv_wiring=read.wiring) == dataclasses.replace(
        config, kv_wiring=config.wiring
    ) or (family != "mixattn")
    assert_same_weights(again, model)
    if FOLDER:
        ids = [tokenizer.encode(text).ids for text in TEXTS]
        stop = new[: new.index(eos) + 1] if new else []
        np.savez(folder / "want.npz", tokens=tokens, logits=logits_f64(folder, tokens))
        about = {
            "new": stop,
            "eos": eos,
            "named_eos": 0 if eos == 0 else None,
            "pad": 1,
            "texts": TEXTS,
            "ids": ids,
            "native": family == "mixattn",
        }
        (folder / "want.json").write_text(json.dumps(about))


def test_the_engine_side_agrees_with_full_recomputation():
    config = export_cases.NATIVE["native_offset"]
    model = random_model(config)
    tokens = np.random.default_rng(3).integers(2, config.vocab_size, (1, 19)).astype(np.int32)
    assert generate(model, tokens.tolist(), NEW_TOK) == [greedy(model, tokens[0])]


def test_every_family_has_exports():
    assert {name.split("-")[0] for name in CASES} >= set(FAMILIES)
    assert len(CASES) > 150


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("option", ["shared", "rope_fraction", "embedding_scale"])
def test_what_a_family_cannot_say_is_refused_by_name(family, option):
    if f"{family}-{option}" in CASES or (family, option) == ("opt", "rope_fraction"):
        return
    config = dataclasses.replace(export_cases.base(family), **export_cases.OPTIONS[option])
    with pytest.raises(ValueError, match=f"{family} cannot express"):
        hf.save(random_model(config), "never", architecture=family)
