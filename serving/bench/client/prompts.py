"""Prompts to send: random ones, ones that share prefixes, and those of a file.

With a vocabulary's size they are token ids, whose number is exact. Without one they are text of that many
short words; the server's `usage` says how many tokens those were.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LETTERS = "etaoinshrdlucm"
FIRST_ID = 8  # ids below are often special tokens


@dataclass(frozen=True)
class PromptToSend:
    """One prompt, as text or ids, and the number of tokens to ask for."""

    prompt: str | Sequence[int]
    output_tok: int


class PromptMaker:
    """Draws prompts.

    Args:
      vocab: size of the server's vocabulary; 0 = text.
    """

    def __init__(self, rng: np.random.Generator, vocab: int = 0) -> None:
        self._rng, self._vocab = rng, vocab

    def random(self, n: int, input_tok: int, output_tok: int, range_ratio: float) -> list[PromptToSend]:
        """Lengths are uniform in L * (1 - ratio) .. L * (1 + ratio), as in vLLM's client."""
        return [
            PromptToSend(
                self._piece(self._length(input_tok, range_ratio)), self._length(output_tok, range_ratio)
            )
            for _ in range(n)
        ]

    def shared(
        self, n: int, groups: int, prefix_tok: int, question_tok: int, output_tok: int
    ) -> list[PromptToSend]:
        """Groups of prompts with a prefix in common, in random order."""
        prefixes = [self._piece(prefix_tok) for _ in range(groups)]
        made = [
            PromptToSend(join(prefixes[i % groups], self._piece(question_tok)), output_tok) for i in range(n)
        ]
        return [made[i] for i in self._rng.permutation(n)]

    def _length(self, tokens: int, ratio: float) -> int:
        low, high = length_range(tokens, ratio)
        return int(self._rng.integers(low, high + 1))

    def _piece(self, tokens: int) -> str | list[int]:
        if self._vocab:
            low = min(FIRST_ID, self._vocab - 1)
            return [int(i) for i in self._rng.integers(low, self._vocab, size=tokens)]
        letters = self._rng.integers(0, len(LETTERS), size=(tokens, 3))
        return " ".join("".join(LETTERS[i] for i in word) for word in letters)


def length_range(tokens: int, ratio: float) -> tuple[int, int]:
    """Smallest and largest length.

    Raises:
      ValueError: the ratio is not in 0..1.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"a range ratio of {ratio} must lie in 0..1, below 1")
    return max(1, math.floor(tokens * (1 - ratio))), max(1, math.ceil(tokens * (1 + ratio)))


def join(first: str | list[int], second: str | list[int]) -> str | list[int]:
    if isinstance(first, str):
        return f"{first} {second}"
    assert isinstance(second, list)
    return first + second


def of_file(path: Path, n: int, output_tok: int) -> list[PromptToSend]:
    """Lines `{"prompt": "...", "output_tokens": 64}` of a file, from the start again where it is short.

    Raises:
      ValueError: the file cannot be read, or a line (named by number) holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as why:
        raise ValueError(f"--dataset_path={path} cannot be read: {why}") from why
    found = [_line(path, number, line, output_tok) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"--dataset_path={path} holds no prompts")
    return [found[i % len(found)] for i in range(n)]


def _line(path: Path, number: int, line: str, output_tok: int) -> PromptToSend:
    try:
        value = json.loads(line)
        prompt, output = value["prompt"], value.get("output_tokens", output_tok)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{path} line {number} is not like {{"prompt": "..."}}') from None
    if not isinstance(prompt, str | list) or not isinstance(output, int) or output < 1:
        raise ValueError(f"{path} line {number} needs a prompt and at least one of output_tokens")
    return PromptToSend(prompt, output)
