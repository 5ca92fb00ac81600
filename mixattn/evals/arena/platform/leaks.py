"""Does a conversation say which model it is? Such a battle's vote is kept and not counted."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

# Makers and families that models name themselves after; further words come from the arena's own models.
KEYWORDS = (
    "openai chatgpt gpt3 gpt4 gpt5 anthropic claude gemini deepmind llama metaai mistral mixtral qwen alibaba deepseek "
    "cohere vicuna alpaca grok phi3 phi4 gemma yandexgpt gigachat baidu ernie kimi moonshot zhipu chatglm "
    "文心一言 通义千问 智谱 月之暗面 深度求索 星火"
).split()
# Cyrillic letters and digits that look like Latin ones; both the text and the word are mapped.
LOOKALIKES = str.maketrans("аеорсухіјѕԁӏ013457", "aeopcyxijsdloieast")
SHORT = 4  # a part of a name with fewer letters is too common to accuse with


def _plain(text: str) -> str:
    """Letters and digits only: case, accents, full-width forms, spaces and punctuation do not hide a name."""
    text = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in text if c.isalnum())


def leak_words(names: Iterable[str], aliases: Iterable[str] = ()) -> tuple[str, ...]:
    """What would give one of `names` away: the whole name, its longer parts, aliases, and KEYWORDS."""
    words = {_plain(word) for word in (*KEYWORDS, *aliases)}
    for name in names:
        words.add(_plain(name))
        words |= {part for part in re.split(r"[\W_\d]+", name.casefold()) if len(part) >= SHORT}
    return tuple(sorted(word for word in words if len(word) > 2 or not word.isascii()))


def find_leak(texts: Sequence[str], words: Sequence[str]) -> str | None:
    """The first of `words` that some text contains in any spelling, else None."""
    for text in texts:
        plain = _plain(text)
        forms = (plain, plain.translate(LOOKALIKES))
        for word in words:
            if word in forms[0] or word.translate(LOOKALIKES) in forms[1]:
                return word
    return None
