"""Recall of a planted number: a sentence with a pass key, other text, and the beginning of the same sentence.

Measured teacher-forced: a digit is recalled if it is the most likely token after the right digits before it.

Axes: R rows, T tokens, A tokens of the answer.
"""

import random
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import tokenizers

from mixattn import Transformer
from train.experiments import loss

PLACES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Athens", "Lisbon", "Warsaw")
DIGITS = 4


class Needles(NamedTuple):
    """Rows that end with the answer of `answer` tokens."""

    tokens_RT: np.ndarray
    answer: int


def plant(
    tokenizer: tokenizers.Tokenizer, filler_RT: np.ndarray, distance_tok: int, seed: int = 0
) -> Needles:
    """A pass key in each row of filler text, `distance_tok` before the row's last token, which repeats it.

    Args:
      distance_tok: between a digit and the place that asks for it.

    Raises:
      ValueError: the two sentences do not fit the rows or the distance.
    """
    rng, rows = random.Random(seed), []
    for filler_T in filler_RT:
        place, number = rng.choice(PLACES), str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))
        rows.append(_row(tokenizer, [int(token) for token in filler_T], place, number, distance_tok))
    return Needles(np.asarray(rows, np.int32), DIGITS)


def recalled(model: Transformer, needles: Needles) -> float:
    """The share of the planted digits that are the most likely token where they are asked for."""
    right = []
    for hidden_RTD, tokens_RT in loss.hidden_states(model, needles.tokens_RT):
        asked_RAD = hidden_RTD[:, -needles.answer - 1 : -1]
        right.append(
            np.asarray(jnp.argmax(model.head(asked_RAD), axis=-1)) == tokens_RT[:, -needles.answer :]
        )
    return float(np.mean(np.concatenate(right)))


def _row(
    tokenizer: tokenizers.Tokenizer, filler: list[int], place: str, number: str, distance_tok: int
) -> list[int]:
    ask = _ids(tokenizer, f"\nThe pass key of {place} is ")
    digits = [_ids(tokenizer, digit)[0] for digit in number]
    tell, close = [*ask, *digits], _ids(tokenizer, ".\n")
    between = distance_tok - len(close) - len(tell)
    before = len(filler) - between - len(close) - 2 * len(tell)
    if between < 0 or before < 0:
        raise ValueError(
            f"a pass key of {len(tell)} tokens, told and asked for at a distance of {distance_tok}, "
            f"does not fit rows of {len(filler)}"
        )
    return [*filler[:before], *tell, *close, *filler[before : before + between], *tell]


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids
