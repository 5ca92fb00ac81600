"""The KV budgets under comparison: the full cache, and each scorer with each budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FULL = "full"
ONCE = ("snapkv", "expected")  # cut the prompt and then grow


@dataclass(frozen=True)
class KeepPolicy:
    """A KV budget by name; "full" keeps everything.

    Attributes:
      scorer: name, or "full". budget: share of the prompt (float), or keys (int).
      options: further fields of `mixattn.keep.Keep`, as pairs.
    """

    scorer: str
    budget: int | float = 1.0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """For tables and files, e.g. "h2o 0.2"."""
        return FULL if self.scorer == FULL else f"{self.scorer} {self.budget:g}"

    @property
    def fields(self) -> dict[str, Any] | None:
        """The arguments of `Keep`; None for the full cache."""
        if self.scorer == FULL:
            return None
        when = {"when": "prompt"} if self.scorer in ONCE else {}
        return {"scorer": self.scorer, "budget": self.budget, **dict(self.options), **when}


def grid(scorers: Sequence[str], budgets: Sequence[str], **options: Any) -> list[KeepPolicy]:
    """The full cache, and every scorer with every budget.

    Args:
      budgets: "0.2" is a share of the prompt, "256" a number of keys.

    Raises:
      ValueError: a budget that is no number.
    """
    pairs = tuple(options.items())
    amounts = [_amount(text) for text in budgets]
    return [
        KeepPolicy(FULL),
        *(KeepPolicy(scorer, amount, pairs) for scorer in scorers for amount in amounts),
    ]


def _amount(text: str) -> int | float:
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError:
        raise ValueError(f"the budget {text!r} is neither a number of keys nor a share such as 0.2") from None
