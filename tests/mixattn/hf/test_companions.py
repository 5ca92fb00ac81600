"""What lies beside the weights is carried whole, and tokenizers come in by one door."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mixattn import hf
from mixattn.hf.companions import SpecialIds
from mixattn.text import chat_prompt
from tests.mixattn.tiny import SHORT, model

SETTINGS = {
    "bos_token": {"content": "w1", "lstrip": False},
    "eos_token": "w2",
    "pad_token": None,
    "additional_special_tokens": ["w5"],
    "model_max_length": 77,
    "add_bos_token": True,
    "tokenizer_class": "LlamaTokenizer",
}
GENERATION = {"do_sample": True, "temperature": 0.7, "eos_token_id": [2, 7]}
HELLO = [{"role": "user", "content": "Hi"}]


def words(**special) -> Tokenizer:
    vocabulary = {f"w{i}": i for i in range(SHORT.vocab_size)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


@pytest.fixture
def source(tmp_path):
    """A folder as transformers writes it."""
    folder = tmp_path / "source"
    hf.save(model(SHORT), folder)
    words().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    return folder


def test_convert_carries_templates_token_names_and_sampling_defaults(source, tmp_path, run_module):
    done = run_module("mixattn.hf", "convert", f"--from={source}", f"--to={tmp_path}/to")
    assert done.returncode == 0, done.stderr
    to = tmp_path / "to"
    assert hf.load_tokenizer(to).encode("w3").ids == hf.load_tokenizer(source).encode("w3").ids == [1, 3]
    assert hf.generation_settings(to) | {"bos_token_id": None, "pad_token_id": None} == GENERATION | {
        "bos_token_id": None,
        "pad_token_id": None,
    }
    assert hf.special_ids(to) == hf.special_ids(source) == SpecialIds(1, (2, 7), None)
    assert chat_prompt(to, HELLO) == chat_prompt(source, HELLO) == "w1Hi"
    assert hf.chat_templates(to) == hf.chat_templates(source)
    kept = json.loads((to / "tokenizer_config.json").read_text())
    assert kept["additional_special_tokens"] == ["w5"]
    assert (kept["model_max_length"], kept["eos_token"], kept["bos_token"]) == (77, "w2", "w1")
    raw = json.loads((to / "config.json").read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (1, [2, 7], None)


def test_tokens_that_nobody_named_are_null_so_that_transformers_adds_none_of_its_own(source, tmp_path):
    (source / "tokenizer_config.json").write_text("{}")
    hf.save(model(SHORT), tmp_path / "to", companions=hf.companions(source))
    kept = json.loads((tmp_path / "to" / "tokenizer_config.json").read_text())
    assert {name: value for name, value in kept.items() if name.endswith("_token")} == {
        "bos_token": None,
        "eos_token": None,
        "pad_token": None,
        "unk_token": None,
    }


def test_saving_over_a_folder_leaves_no_template_of_the_old_one(source):
    hf.save(model(SHORT), source, companions=hf.Companions(words()))
    assert hf.chat_templates(source) == {}
    assert hf.stop_ids(source) == []


def test_a_save_without_a_tokenizer_keeps_the_one_that_is_there(source):
    hf.save(model(SHORT), source)
    assert hf.has_tokenizer(source)
    assert "default" in hf.chat_templates(source)


def test_the_end_token_is_found_by_its_name_alone(tmp_path):
    hf.save(model(SHORT), tmp_path, words(), tokenizer_config={"eos_token": "w4"})
    (tmp_path / "generation_config.json").unlink()
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["eos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert hf.stop_ids(tmp_path) == [4]


@pytest.mark.parametrize("way", ["truncation", "padding"])
def test_a_tokenizer_neither_cuts_nor_pads(tmp_path, way):
    made = words()
    made.enable_truncation(4) if way == "truncation" else made.enable_padding(length=12)
    made.save(str(tmp_path / "tokenizer.json"))
    text = " ".join(f"w{i}" for i in range(8))
    assert (
        len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids) != 8
    )  # the library's own
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert hf.read_tokenizer(path).encode(text).ids == list(range(8))
    assert hf.load_tokenizer(tmp_path).encode(text).ids == list(range(8))


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, [9, 3]),
        ({"add_bos_token": False}, [3]),
        ({"add_bos_token": True, "bos_token": "w1"}, [1, 3]),
        ({"add_bos_token": True, "add_eos_token": True, "bos_token": "w1", "eos_token": "w2"}, [1, 3, 2]),
        ({"add_bos_token": True}, [3]),  # no token to add
    ],
)
def test_the_tokens_around_a_text_are_those_that_the_settings_say(tmp_path, settings, ids):
    made = words()
    made.post_processor = processors.TemplateProcessing(single="w9 $A", special_tokens=[("w9", 9)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert hf.load_tokenizer(tmp_path).encode("w3").ids == ids


def test_a_token_to_add_that_the_tokenizer_does_not_have_is_refused(tmp_path):
    words().save(str(tmp_path / "tokenizer.json"))
    settings = {"add_bos_token": True, "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"tokenizer\.json has no token '<s>', .* as bos_token"):
        hf.load_tokenizer(tmp_path)


def test_the_tokens_around_a_text_are_found_by_any_piece_that_the_tokenizer_knows(tmp_path):
    made = Tokenizer(models.BPE({"b": 0, "c": 1, "bc": 2}, [("b", "c")]))
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.BertProcessing(("</s>", 4), ("<s>", 3))
    assert made.encode("a", add_special_tokens=False).ids == []
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"add_eos_token": false}')
    assert hf.load_tokenizer(tmp_path).encode("bc").ids == [3, 2]


def gpt2_like(folder) -> None:
    """Like GPT-2's: id 0 is "!", and the end of a text has the last id."""
    made = Tokenizer(models.WordLevel({"!": 0, "a": 1, "b": 2}, unk_token="!"))
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))


def test_documents_are_separated_by_the_tokenizers_own_end_token(tmp_path):
    gpt2_like(tmp_path)
    assert hf.end_token(tmp_path / "tokenizer.json") == hf.end_token(tmp_path) == 3
    assert hf.end_token(tmp_path, "a") == 1
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    assert hf.end_token(tmp_path / "tokenizer.json") == 2


def test_a_tokenizer_without_a_known_end_token_is_refused(tmp_path):
    words().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"names no token that ends a text .eos_token"):
        hf.end_token(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="has no token 'nope', which is said to end a text"):
        hf.end_token(tmp_path / "tokenizer.json", "nope")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is not JSON"),
        (b"[]", "holds a list"),
        (b"{}", "is not a tokenizer"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"model": {"type": "BPE"}}', "is not a tokenizer"),
        (b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_damaged_tokenizer_is_refused_by_file(tmp_path, content, why):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"tokenizer.json {why}") as error:
        hf.read_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        hf.read_tokenizer(tmp_path)


@pytest.mark.parametrize("value", [3, [{"name": "x"}], {"default": 3}, [{"name": "../x", "template": "a"}]])
def test_a_chat_template_that_is_none_is_refused(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ValueError, match=r"chat.template"):
        hf.chat_templates(tmp_path)


def test_only_special_tokens_are_named_beside_the_tokenizer(tmp_path):
    """transformers cuts texts at whatever is named: naming an ordinary word changes what they encode to."""
    made = words()
    made.add_special_tokens(["w3"])
    hf.save(model(SHORT), tmp_path, made, extra={"eos_token_id": 3, "pad_token_id": 5})
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert named["eos_token"] == "w3"
    assert named["pad_token"] is None
    assert hf.special_ids(tmp_path) == SpecialIds(None, (3,), 5)
