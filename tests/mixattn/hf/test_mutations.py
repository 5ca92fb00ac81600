"""At random: a checkpoint directory that is damaged anywhere is right or refused in one sentence.

About a hundred cases in `make test`, 2,000 marked long. A failing case is repeated by its number.
"""

import dataclasses
import random
import warnings

import jax
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mixattn import chat_template, hf
from tests.mixattn.hf import mutations
from tests.mixattn.tiny import model, wired

CONFIG = wired("0s_0s_2", n_layers=3, window=5)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Good folders by name: native, llama (tied), sharded, and a mixture."""
    root = tmp_path_factory.mktemp("good")
    made = Tokenizer(
        models.BPE(
            vocab={"a": 0, "b": 1, "c": 2, " ": 3, "ab": 4, "abc": 5}, merges=[("a", "b"), ("ab", "c")]
        )
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(" ", "isolated"), decoders.Fuse()
    made.add_special_tokens(["<s>", "</s>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 64, "chat_template": TEMPLATE}
    beside = hf.Companions(made, names, {"default": TEMPLATE}, {"do_sample": True, "temperature": 0.7})
    plain = wired("standard", n_layers=2, tied=True)
    scaled = {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original": 16}
    experts = wired("standard", n_layers=2, n_experts=3, experts_per_token=2)
    hf.save(model(CONFIG), root / "native", companions=beside)
    hf.save(model(plain), root / "llama", architecture="llama", companions=beside)
    hf.save(
        model(dataclasses.replace(plain, **scaled)),
        root / "qwen2-yarn",
        architecture="mistral",
        companions=beside,
    )
    hf.save(model(experts), root / "mixtral", architecture="mixtral", companions=beside)
    return sorted(path for path in root.iterdir())


def tensors_of(net) -> dict[str, np.ndarray]:
    return {str(path): np.asarray(x.get_value()) for path, x in nnx.to_flat_state(nnx.split(net)[1])}


def opened(folder) -> dict:
    """Everything that comes in with a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, config = hf.load(folder)
        beside = hf.companions(folder)
        ids = beside.special_ids(config.vocab_size, folder)
        tokenizer = hf.load_tokenizer(folder)
    text = chat_template.render(beside.templates, beside.settings, [{"role": "user", "content": "abc"}])
    return {
        "config": config,
        "tensors": tensors_of(net),
        "ids": ids,
        "generation": dict(beside.generation),
        "settings": dict(beside.settings),
        "tokens": tokenizer.encode("abc ab c").ids,
        "tokenizer": tokenizer.to_str(),
        "text": text,
    }


_good: dict = {}


def good(source) -> dict:
    if source not in _good:
        _good[source] = opened(source)
    return _good[source]


# Which parts of a checkpoint a file may change; a damaged one may change no other.
MAY_CHANGE = {
    "config.json": {"config", "ids", "tensors"},  # tensors: dtype only, checked below
    "generation_config.json": {"generation", "ids"},
    "tokenizer.json": {"tokens", "tokenizer", "ids"},
    "tokenizer_config.json": {"settings", "ids", "text", "tokens", "tokenizer"},
    "chat_template.jinja": {"text"},
    "model.safetensors": {"tensors"},
    "modeling_mixattn.py": set(),
}


def check(sources, tmp_path, seed: int) -> str:
    """One case; what came of it."""
    rng = random.Random(seed)
    source = rng.choice(sources)
    folder = mutations.copy_of(source, tmp_path / "spoiled")
    path = rng.choice(sorted(folder.iterdir()))
    header = path.suffix == ".safetensors" and rng.random() < 0.5
    how = mutations.respell_header(rng, path) if header else mutations.mutate(rng, path)
    where = f"case {seed}: {source.name}/{path.name} {how}"
    try:
        got = opened(folder)
    except (ValueError, OSError) as why:
        return "refused" if str(why) and "\n" not in str(why) else pytest.fail(f"{where}: {why!r}")
    want = good(source)
    changed = {name for name in want if name != "tensors" and got[name] != want[name]}
    if not mutations.same_tensors(got["tensors"], want["tensors"]):
        changed.add("tensors")
    assert changed <= MAY_CHANGE[path.name], f"{where} changes {changed - MAY_CHANGE[path.name]}"
    if path.name == "config.json" and "tensors" in changed:
        narrowed = {k: v.astype(got["tensors"][k].dtype) for k, v in want["tensors"].items()}
        assert got["config"].dtype != want["config"].dtype or not got["config"].tied, where
        assert mutations.same_tensors(narrowed, {k: got["tensors"][k] for k in narrowed}), where
    if path.name == "model.safetensors" and how in ("respell_header", "cut", "missing"):
        assert "tensors" not in changed, f"{where}: other weights than the file's bytes"
    return "same" if not changed else "says so"


@pytest.fixture(autouse=True)
def _no_jit():
    with jax.disable_jit():
        yield


def test_a_checkpoint_that_is_damaged_is_right_or_refused_in_a_sentence(sources, tmp_path):
    came = [check(sources, tmp_path, seed) for seed in range(110)]
    assert {"refused", "same"} <= set(came)
    assert came.count("refused") > 30


@pytest.mark.long
def test_two_thousand_damaged_checkpoints_are_right_or_refused_in_a_sentence(sources, tmp_path):
    came = [check(sources, tmp_path, seed) for seed in range(10_000, 12_000)]
    print({word: came.count(word) for word in sorted(set(came))})


def test_the_check_would_notice_a_loader_that_forgets_the_template(sources, tmp_path, monkeypatch):
    """A template that is lost in silence is what the check is for."""
    for source in sources:
        good(source)
    monkeypatch.setattr(
        hf, "companions", lambda folder: hf.Companions(Tokenizer(models.BPE()), {}, {"default": "x"})
    )
    with pytest.raises(AssertionError, match="changes"):
        _ = [check(sources, tmp_path, seed) for seed in range(40)]
