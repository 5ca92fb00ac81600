"""A prompt's category and language, by simple rules that the pages state."""

import re

RULES = {
    "coding": re.compile(
        r"```|\b(python|javascript|sql|regex|compile|function|class|bug|code|script|api)\b", re.I
    ),
    "math": re.compile(
        r"\d\s*[-+*/^=]\s*\d|\b(prove|theorem|integral|equation|solve|probability|matrix)\b", re.I
    ),
}
LONG = 1500  # characters


def category(prompt: str) -> str:
    """coding, math, long prompt, or other: the first that fits."""
    for name, rule in RULES.items():
        if rule.search(prompt):
            return name
    return "long prompt" if len(prompt) > LONG else "other"


def language(accept_language: str) -> str:
    """The first language that the browser asks for, e.g. "en"; "unknown" without one."""
    tag = re.match(r"\s*([A-Za-z]{2,3})\b", accept_language)
    return tag.group(1).lower() if tag else "unknown"
