"""How an answer looks, in numbers: the public format's `conv_metadata`, for style control."""

import re
from collections.abc import Sequence
from typing import Any

HEADER = re.compile(r"^(#{1,6})\s", re.MULTILINE)
ORDERED = re.compile(r"^\s*\d+\.\s", re.MULTILINE)
UNORDERED = re.compile(r"^\s*[-*+]\s", re.MULTILINE)
BOLD = {mark: re.compile(rf"{re.escape(mark)}[^*_\n]+{re.escape(mark)}") for mark in ("**", "__")}
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def of_conversations(talks: Sequence[Sequence[dict[str, str]]]) -> dict[str, Any]:
    """Counts of both sides, over all turns. Tokens are words here: models' tokenizers differ."""
    found: dict[str, Any] = {}
    for side, talk in zip("ab", talks):
        answers = [m["content"] for m in talk if m["role"] == "assistant"]
        text = "\n".join(CODE.sub("", answer) for answer in answers)
        levels = [len(mark) for mark in HEADER.findall(text)]
        found |= {
            f"sum_assistant_{side}_tokens": sum(len(answer.split()) for answer in answers),
            f"header_count_{side}": {f"h{n}": levels.count(n) for n in range(1, 7)},
            f"list_count_{side}": {
                "ordered": len(ORDERED.findall(text)),
                "unordered": len(UNORDERED.findall(text)),
            },
            f"bold_count_{side}": {mark: len(rule.findall(text)) for mark, rule in BOLD.items()},
        }
    return found
