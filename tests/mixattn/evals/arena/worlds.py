"""Votes that several tests share."""

import numpy as np

from mixattn.evals.arena.stats.counts import Counts
from mixattn.evals.arena.stats.synthetic import SyntheticConfig, simulate

# Chiang et al. 2024, figure 2: win rates of the row's model over later ones, and battles of each pair.
FIGURE_2_MODELS = [
    "gpt-4-turbo",
    "gpt-4-0613",
    "mistral-medium",
    "mixtral",
    "gemini-pro-dev-api",
    "claude-2.1",
    "gpt-3.5-turbo-0613",
    "claude-instant-1",
    "llama-2-70b-chat",
    "llama-2-13b-chat",
    "llama-2-7b-chat",
    "mistral-7b-instruct",
]
FIGURE_2_RATES = """
.68 .69 .75 .71 .76 .77 .75 .76 .79 .86 .90
.50 .59 .61 .59 .59 .59 .62 .72 .70 .80
.54 .56 .50 .57 .52 .69 .73 .60 .87
.54 .48 .51 .56 .58 .53 .73 .84
.42 .54 .55 .58 .63 .67 .76
.49 .55 .58 .61 .64 .73
.56 .58 .63 .72 .71
.54 .68 .65 .62
.61 .58 .61
.53 .57
.52
"""
FIGURE_2_BATTLES = """
2564 1189 1192 858 3053 1991 270 141 157 106 144
566 263 756 2227 1025 355 414 409 264 197
775 371 382 773 103 45 51 40 52
71 744 869 136 862 66 45 61
74 564 53 31 30 30 37
351 650 113 117 75 114
842 572 388 283 155
459 241 202 101
383 134 369
251 621
521
"""


def figure_2(min_pair_count: int | None = None) -> Counts:
    """The counts of figure 2 with fractional wins; weighted by 1 / max(battles, min_pair_count) if given."""
    rate, battles = (np.array(text.split(), dtype=float) for text in (FIGURE_2_RATES, FIGURE_2_BATTLES))
    low, high = np.triu_indices(12, 1)
    votes = np.stack([battles * (1 - rate), 0 * rate, battles * rate], axis=1)
    w = np.ones(66) if min_pair_count is None else 1 / np.maximum(battles, min_pair_count)
    return Counts(12, low, high, votes, votes * w[:, None], votes * w[:, None] ** 2)


def some_votes(**config):
    """Simulated votes of 12 models, a fifth of them ties."""
    return simulate(SyntheticConfig(**{"models": 12, "votes": 4000, "skew": 1.0, "seed": 1} | config))[0]


def design(votes):
    """(n, M) +1 for the first model, -1 for the second."""
    x = np.zeros((len(votes), len(votes.models)))
    x[np.arange(len(votes)), votes.first] = 1
    x[np.arange(len(votes)), votes.second] = -1
    return x
