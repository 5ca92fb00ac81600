"""Chat templates come out as transformers renders them, byte for byte.

`fixtures/chat.json` is what `torch_chat.py` wrote; `make parity` writes it anew and compares with that.
"""

import json
import os
from pathlib import Path

import pytest

from mixattn import chat_template
from tests.parity import chat_cases

FOLDER = os.environ.get("MIXATTN_PARITY")
FILE = Path(FOLDER) / "chat.json" if FOLDER else Path(__file__).parent / "fixtures" / "chat.json"
WANT = json.loads(FILE.read_text(encoding="utf-8"))


def rendered(name: str, number: int) -> str | None:
    messages, options = chat_cases.CHATS[number]
    try:
        return chat_template.render(
            {"default": chat_cases.TEMPLATES[name]}, chat_cases.SPECIAL, messages, **options
        )
    except ValueError as why:
        return None if "\n" not in str(why) else str(why)


@pytest.mark.parametrize("name", chat_cases.TEMPLATES)
def test_a_template_gives_the_bytes_that_transformers_gives(name):
    assert [rendered(name, i) for i in range(len(chat_cases.CHATS))] == WANT[name]


def test_the_table_holds_forty_templates_that_render():
    assert len(chat_cases.TEMPLATES) >= 40
    assert sum(any(texts) for texts in WANT.values()) >= 40


def test_the_comparison_would_notice_another_whitespace():
    template = chat_cases.TEMPLATES["whitespace"].replace("{%+", "{%")
    messages, options = chat_cases.CHATS[0]
    text = chat_template.render({"default": template}, chat_cases.SPECIAL, messages, **options)
    assert text != WANT["whitespace"][0]
