"""Text around generation, and the chat templates of checkpoints."""

import json

import pytest
import tokenizers

from mixattn import generate, hf
from mixattn.text import chat_ids, chat_prompt, complete
from tests.mixattn.tiny import SHORT, model

TEMPLATE = """{{ bos_token }}{% for m in messages %}
{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
[{{ m.role }}] {{ m.content }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}"""
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer():
    words = {f"w{i}": i for i in range(SHORT.vocab_size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def test_completions_are_the_decoded_tokens(tokenizer):
    new = generate(model(SHORT), [[1, 2, 3], [4]], 6)
    want = [" ".join(f"w{i}" for i in row) for row in new]
    assert complete(model(SHORT), tokenizer, ["w1 w2 w3", "w4"], max_new_tokens=6) == want
    cut = complete(model(SHORT), tokenizer, ["w1 w2 w3"], max_new_tokens=6, stop_ids=[new[0][2]])
    assert cut == [" ".join(f"w{i}" for i in new[0][: new[0].index(new[0][2])])]


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_renders_with_the_checkpoints_special_tokens(place, tmp_path):
    config = {"bos_token": {"content": "<s>"}}
    if place.endswith("json"):
        config["chat_template"] = TEMPLATE
    else:
        (tmp_path / place).write_text(TEMPLATE)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_prompt(tmp_path, HELLO) == "<s>[user] Hello\n[assistant]"


def test_templates_that_fail_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="has no chat template"):
        chat_prompt(tmp_path, HELLO)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.raises(ValueError, match="refuses these messages: no system role"):
        chat_prompt(tmp_path, [{"role": "system", "content": "x"}])
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ValueError, match="does not render"):
        chat_prompt(tmp_path, HELLO)


def test_a_prompt_that_spells_out_the_begin_token_gets_no_second_one(tokenizer, tmp_path):
    bos = tokenizers.processors.TemplateProcessing(single="w9 $A", special_tokens=[("w9", 9)])
    adding = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    adding.post_processor = bos
    assert adding.encode("w9 w1").ids == [9, 9, 1]  # what the library alone does
    assert hf.encode(adding, "w9 w1") == [9, 1]
    assert hf.encode(adding, "w1") == [9, 1]
    adding.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("w9 {{ messages[0].content }}")
    messages = [{"role": "user", "content": "w2"}]
    assert hf.encode(adding, chat_prompt(tmp_path, messages)) == [9, 2]
    assert chat_ids(tmp_path, messages) == [9, 2]
    again = complete(model(SHORT), adding, ["w9 w1", "w1"], max_new_tokens=4)
    assert again[0] == again[1]


def test_named_templates_are_chosen_by_name_and_by_tools(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_prompt(tmp_path, HELLO) == "plain"
    assert chat_prompt(tmp_path, HELLO, tools=[{}]) == "tools"
    assert chat_prompt(tmp_path, HELLO, template="tool_use") == "tools"
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("documents")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert chat_prompt(tmp_path, HELLO) == "file"
    assert chat_prompt(tmp_path, HELLO, template="rag") == "documents"


def test_a_token_that_is_null_prints_nothing_and_the_generation_prompt_can_be_left_out(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": None, "chat_template": TEMPLATE})
    )
    assert chat_prompt(tmp_path, HELLO) == "[user] Hello\n[assistant]"
    assert chat_prompt(tmp_path, HELLO, add_generation_prompt=False) == "[user] Hello\n"


def test_a_template_cannot_reach_into_python(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="does not render"):
        chat_prompt(tmp_path, HELLO)
