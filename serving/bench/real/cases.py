"""What the sides are asked, and the prompts: English text that comes with Python."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Requests that are submitted at once.

    Attributes:
      requests: how many.
      prompt_tok, new_tok: tokens of each prompt, and of each answer.
    """

    name: str
    requests: int
    prompt_tok: int
    new_tok: int

    @property
    def longest_tok(self) -> int:
        return self.prompt_tok + self.new_tok

    def describe(self) -> str:
        many = "1 request" if self.requests == 1 else f"{self.requests} at once"
        return f"{many}, {self.prompt_tok:,} + {self.new_tok} tokens"


CASES = {
    case.name: case
    for case in (
        Case("one", 1, 128, 64),
        Case("sixteen", 16, 128, 64),
        Case("thirtytwo", 32, 128, 64),
        Case("long", 1, 2000, 32),
        Case("longfour", 4, 2000, 32),
    )
}


def text() -> str:
    """Python's reference manual, as `help()` shows it; the same on every machine with the same Python."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def prompts(case: Case, round_: int, ids: Sequence[int]) -> list[list[int]]:
    """The prompts of a round: each begins elsewhere in the text, and no two rounds begin alike."""
    stride = (len(ids) - case.prompt_tok) // (case.requests * 64)
    starts = [
        (round_ * case.requests + row) * stride % (len(ids) - case.prompt_tok) for row in range(case.requests)
    ]
    return [list(ids[start : start + case.prompt_tok]) for start in starts]
