"""Does a conversation say which model it is? Such a battle's vote is kept and not counted."""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

# Makers and families that models name themselves after; further words come from the arena's own models.
KEYWORDS = [
    "openai",
    "chatgpt",
    "gpt3",
    "gpt4",
    "gpt5",
    "anthropic",
    "claude",
    "gemini",
    "deepmind",
    "llama",
    "metaai",
    "mistral",
    "mixtral",
    "qwen",
    "alibaba",
    "deepseek",
    "cohere",
    "vicuna",
    "alpaca",
    "grok",
    "phi3",
    "phi4",
    "gemma",
    "yandexgpt",
    "gigachat",
    "baidu",
    "ernie",
    "kimi",
    "moonshot",
    "zhipu",
    "chatglm",
    "文心一言",
    "通义千问",
    "智谱",
    "月之暗面",
    "深度求索",
    "星火",
]
# Cyrillic letters and digits that look like Latin ones; both the text and the word are mapped.
LOOKALIKES = str.maketrans("аеорсухіјѕԁӏ013457", "aeopcyxijsdloieast")
SHORT = 4  # a part of a name with fewer letters is too common to accuse with


def _pieces(text: str) -> list[str]:
    """Runs of letters and runs of digits; case, accents and full-width forms do not hide a name."""
    text = unicodedata.normalize("NFKD", text).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    return re.findall(r"[^\W\d_]+|\d+", text)


def _plain(text: str) -> str:
    return "".join(_pieces(text))


def leak_words(names: Iterable[str], aliases: Iterable[str] = ()) -> tuple[str, ...]:
    """What would give one of `names` away: the whole name, its longer parts, aliases, and KEYWORDS."""
    words = {_plain(word) for word in (*KEYWORDS, *aliases)}
    for name in names:
        words.add(_plain(name))
        words |= {part for part in re.split(r"[\W_\d]+", name.casefold()) if len(part) >= SHORT}
    return tuple(sorted(word for word in words if len(word) > 2 or not word.isascii()))


def find_leak(texts: Sequence[str], words: Sequence[str]) -> str | None:
    """The first of `words` that some text contains in any spelling, else None.

    Letters may be spread over pieces ("z-e-b-r-a"), but a word must begin where a piece begins, and end
    where one
    ends if it spans several: "open air" does not say "openai".
    """
    for text in texts:
        pieces = _pieces(text)
        for form in (pieces, [piece.translate(LOOKALIKES) for piece in pieces]):
            joined = "".join(form)
            ends = set(itertools.accumulate(map(len, form)))
            starts = {0, *ends}
            for word in words:
                for sought in {word, word.translate(LOOKALIKES)} if form is not pieces else {word}:
                    if _stands_in(joined, sought, starts, ends):
                        return word
    return None


def _stands_in(joined: str, word: str, starts: set[int], ends: set[int]) -> bool:
    at = joined.find(word)
    while at >= 0:
        end = at + len(word)
        inside_one = not any(cut in ends for cut in range(at + 1, end))
        if not word.isascii() or (at in starts and (end in ends or inside_one)):
            return True
        at = joined.find(word, at + 1)
    return False
