"""One question about a long context, and how an answer to it is scored.

The parts are joined as context + question + lead: `lead` begins the answer, so that models without
instruction tuning know its form. Query-agnostic runs cut the cache after the context, before the question is
read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Count = Callable[[str], int]  # tokens of a text
Fill = Callable[[int], str]  # a text of so many units


@dataclass(frozen=True)
class Example:
    """A question.

    Attributes:
      task: its name. index: number of the sample, from 0. length: tokens that were asked for.
      depth: where the answer lies, from 0 (beginning) to 1 (end) of the context; -1 where it lies everywhere.
      context, question, lead: see the module.
      answers: strings that a right answer contains.
      new_tokens: tokens that the answer may have.
    """

    task: str
    index: int
    length: int
    depth: float
    context: str
    question: str
    lead: str
    answers: tuple[str, ...]
    new_tokens: int


def score(example: Example, answer: str) -> float:
    """The share of the expected strings that the answer contains, letter case aside."""
    said = answer.lower()
    return sum(wanted.lower() in said for wanted in example.answers) / len(example.answers)


def grown(fill: Fill, room: int, count: Count) -> str:
    """The longest of the texts fill(0), fill(1), ... that has at most `room` tokens.

    Raises:
      ValueError: even fill(0) is longer.
    """
    if (least := count(fill(0))) > room:
        raise ValueError(f"the task needs {least} tokens of context, and the length leaves {room}")
    low, high = 0, 1
    while count(fill(high)) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(fill(middle)) <= room else (low, middle)
    return fill(low)


def generator(seed: int, task: str, index: int) -> Random:
    """The random numbers of one sample, the same for every length, depth and budget."""
    return Random(f"{seed}/{task}/{index}")
