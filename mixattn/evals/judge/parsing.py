"""Reads a verdict out of a judge's reply. Nothing here raises, whatever the reply holds.

With the rule "first", labels and ratings are read as FastChat's code reads them: [[A]] before [[B]] before
[[C]], wherever they stand, and the first double-bracketed rating. The rule "last" reads the last verdict,
since a judge may quote others before it decides.
"""

import re
from typing import Literal

type Rule = Literal["first", "last"]
type Slot = Literal["A", "B", "tie", "error"]

RULES: tuple[Rule, ...] = ("first", "last")
LABELS: dict[str, Slot] = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}
TIE_DELTA = 0.1  # two scores this close are a tie
FIVE = ("[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]")
NO_RATING = -1

# Possessive quantifiers keep a long run of digits linear; the texts that match are FastChat's.
_NUMBER = r"[0-9]++(?:\.[0-9]*+)?+"
_RATING = re.compile(rf"\[\[({_NUMBER})\]\]")
_RATING_BACKUP = re.compile(rf"\[({_NUMBER})\]")
_SCORES = re.compile(rf"\[\[({_NUMBER}),\s?({_NUMBER})\]\]")
_SCORES_BACKUP = re.compile(rf"\[({_NUMBER}),\s?({_NUMBER})\]")
_LONGEST = 30  # digits of a number that is read


def pairwise(reply: str, rule: Rule = "first") -> Slot:
    """The better slot, "tie", or "error" if the reply holds no verdict."""
    found = [label for label in LABELS if label in reply]
    if not found:
        return "error"
    return LABELS[found[0] if rule == "first" else max(found, key=reply.rfind)]


def rating(reply: str, rule: Rule = "first", span: tuple[float, float] | None = None) -> float:
    """The rating, or -1 if the reply holds none.

    Args:
      span: lowest and highest rating allowed; one outside counts as none. None allows every number.
    """
    found = _RATING.findall(reply) or _RATING_BACKUP.findall(reply)
    if not found:
        return NO_RATING
    value = _number(found[0 if rule == "first" else -1])
    return NO_RATING if span and not span[0] <= value <= span[1] else value


def two_scores(reply: str, rule: Rule = "first") -> Slot:
    """The slot with the higher of two scores `[[8, 7.5]]`; "tie" within 0.1."""
    found = _SCORES.findall(reply) or _SCORES_BACKUP.findall(reply)
    if not found:
        return "error"
    a, b = map(_number, found[0 if rule == "first" else -1])
    if NO_RATING in (a, b):
        return "error"
    if abs(a - b) <= TIE_DELTA:
        return "tie"
    return "A" if a > b else "B"


def five_labels(reply: str, rule: Rule = "last") -> str:
    """One of FIVE, or "error"; the first or the last in the text."""
    found = [label for label in FIVE if label in reply]
    if not found:
        return "error"
    return min(found, key=reply.find) if rule == "first" else max(found, key=reply.rfind)


def slot_of_label(label: str) -> Slot:
    """The slot that one of FIVE prefers."""
    if label not in FIVE:
        return "error"
    return "tie" if label == "[[A=B]]" else "A" if label[2] == "A" else "B"


def _number(text: str) -> float:
    """A whole number stays one, so that it is written as FastChat writes it; absurd lengths are no rating."""
    if len(text) > _LONGEST:
        return NO_RATING
    return float(text) if "." in text else int(text)
