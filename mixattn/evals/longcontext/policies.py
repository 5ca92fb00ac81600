"""The KV budgets under comparison: the full cache, and each scorer with each budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FULL = "full"
ONCE = ("snapkv", "expected")  # cut the prompt and then grow
# What may follow a scorer's name: "h2o+always" is `Keep("h2o", promotion="always")`.
VARIANTS: dict[str, dict[str, Any]] = {
    "always": {"promotion": "always"},
    "owner_only": {"scope": "owner_only"},
    "prompt": {"when": "prompt"},
    "pyramid": {"allocation": "pyramid"},
    "blockwise": {"prefill": "blockwise"},
    "one_recent": {"recent": 1},
}


@dataclass(frozen=True)
class KeepPolicy:
    """A KV budget by name; "full" keeps everything.

    Attributes:
      scorer: name with variants behind "+" (see `VARIANTS`), or "full".
      budget: share of the prompt (float), or keys (int).
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
        scorer, *variants = self.scorer.split("+")
        fields = {"scorer": scorer, "budget": self.budget, **dict(self.options)}
        fields |= {"when": "prompt"} if scorer in ONCE else {}
        for variant in variants:
            fields |= _variant(variant)
        return fields


def grid(scorers: Sequence[str], budgets: Sequence[str], **options: Any) -> list[KeepPolicy]:
    """The full cache, and every scorer with every budget.

    Args:
      budgets: "0.2" is a share of the prompt, "256" a number of keys.

    Raises:
      ValueError: a budget that is no number.
    """
    amounts = [_amount(text) for text in budgets]
    return [
        KeepPolicy(FULL),
        *(KeepPolicy(scorer, amount, _options(scorer, options)) for scorer in scorers for amount in amounts),
    ]


def _options(scorer: str, given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The control without sinks has none; with them it would be "streaming"."""
    return tuple((given | {"sinks": 0} if scorer == "recent" and "sinks" in given else given).items())


def _variant(name: str) -> dict[str, Any]:
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r} is not one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _amount(text: str) -> int | float:
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError:
        raise ValueError(f"the budget {text!r} is neither a number of keys nor a share such as 0.2") from None
