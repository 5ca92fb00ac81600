"""Text around generation, and the chat templates of checkpoints."""

import json

import pytest
import tokenizers

from mixattn import generate
from mixattn.text import chat_prompt, complete
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


def test_a_template_cannot_reach_into_python(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="does not render"):
        chat_prompt(tmp_path, HELLO)
