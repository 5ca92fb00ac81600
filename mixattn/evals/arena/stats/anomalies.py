"""Voters who do not vote like the rest (Chiang et al. 2024, section 5.1, and one rule of our own).

paper: p = (1 + #{h >= H'}) / (n + 1), Fisher's sum against chi-square at 5 random votes. Its p-values are
discrete and too large, so it has almost no power; kept to compare with.
randomised: ties among h and H' are broken at random, so that p is exactly uniform; both directions at
alpha / 2.
products: two running products of 1 / (2 p) against 1 / alpha, for wins and losses by name order (a test
martingale, valid at any time).
betting: bets against the hypothesis that a voter scores models as the others do: one bet for and one
against each model and each side of the page, all shares of one stake, against 1 / alpha at any time. It
has power where the others have little: a voter who favours one model, or a side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy.special import logsumexp
from scipy.stats import chi2

from mixattn.evals.arena.stats.counts import SCORE, Floats, Ints
from mixattn.evals.arena.stats.votes import FIRST_WINS, SECOND_WINS, TIE, Votes

RULES = ("randomised", "products", "paper", "betting")
LOOKS = 5  # random times at which the Fisher rules look
HORIZON = 100  # votes of a voter that are judged


@dataclass(frozen=True)
class Verdict:
    """One voter: how many votes were judged, whether flagged, and after which vote (0: never)."""

    voter: str
    votes: int
    flagged: bool
    at_vote: int


def find_anomalies(
    votes: Votes, *, rule: str, alpha: float, rng: Generator, min_votes: int = 5
) -> list[Verdict]:
    """Judges each voter of column `judge` against the votes of all others on the same pairs, flagged
    voters first.

    Raises:
      ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not one of {', '.join(RULES)}")
    judge: dict[str, Callable[[Ints, Ints, float, Generator], int]] = {
        "paper": _paper,
        "randomised": _randomised,
        "products": _products,
    }
    by_name = votes.first < votes.second
    outcome = np.where(by_name, votes.outcome, FIRST_WINS - votes.outcome)
    _, pair = np.unique(votes.pair(), return_inverse=True)
    table = np.zeros((int(pair.max()) + 1, 3), dtype=np.int64)
    np.add.at(table, (pair, outcome), 1)
    names, voter = np.unique(votes.columns["judge"].astype(str), return_inverse=True)
    order = np.argsort(voter, kind="stable")
    found = []
    prior = np.array([0.5, 0.0, 0.5])  # a pair that nobody else voted on says nothing
    for v, mine in enumerate(np.split(order, np.cumsum(np.bincount(voter))[:-1])):
        if len(mine) < min_votes:
            continue
        own = np.zeros_like(table)
        np.add.at(own, (pair[mine], outcome[mine]), 1)
        judged = mine[:HORIZON]
        history = (table - own)[pair[judged]]
        if rule == "betting":
            expected = (history + prior) @ SCORE / (history.sum(1) + 1)
            expected = np.where(by_name[judged], expected, 1 - expected)
            at = _betting(votes, judged, expected, alpha)
        else:
            at = judge[rule](history, outcome[judged], alpha, rng)
        found.append(Verdict(str(names[v]), len(judged), at > 0, at))
    return sorted(found, key=lambda verdict: (not verdict.flagged, -verdict.votes, verdict.voter))


def p_values(history: Ints, outcome: Ints, *, upper: bool) -> tuple[Ints, Ints, Ints]:
    """(j,) entries of the history beyond the vote, equal to it, and all."""
    score = np.arange(3)
    beyond = score > outcome[:, None] if upper else score < outcome[:, None]
    equal = score == outcome[:, None]
    return (history * beyond).sum(1), (history * equal).sum(1), history.sum(1)


def _looks(n: int, rng: Generator) -> Ints:
    looks = np.unique(rng.integers(1, HORIZON + 1, LOOKS))
    return looks[looks <= n]


def _fisher(p: Floats, alpha: float, looks: Ints) -> int:
    """The first look at which -2 sum log p is too large, or 0."""
    total = np.cumsum(-2 * np.log(p))
    for j in looks:
        if total[j - 1] >= chi2.ppf(1 - alpha / LOOKS, 2 * j):
            return int(j)
    return 0


def _paper(history: Ints, outcome: Ints, alpha: float, rng: Generator) -> int:
    beyond, equal, n = p_values(history, outcome, upper=True)
    return _fisher((1 + beyond + equal) / (n + 1), alpha, _looks(len(outcome), rng))


def _randomised(history: Ints, outcome: Ints, alpha: float, rng: Generator) -> int:
    looks = _looks(len(outcome), rng)
    for upper in (True, False):
        beyond, equal, n = p_values(history, outcome, upper=upper)
        u = np.maximum(rng.random(len(outcome)), 1e-12)
        at = _fisher((beyond + u * (1 + equal)) / (n + 1), alpha / 2, looks)
        if at:
            return at
    return 0


def _products(history: Ints, outcome: Ints, alpha: float, rng: Generator) -> int:
    """Ville's inequality on both products; a tie moves neither."""
    decided = outcome != TIE
    grown = np.zeros((2, len(outcome)))
    for side, upper in enumerate((True, False)):
        wins = history[:, [SECOND_WINS, FIRST_WINS]]
        score = (outcome == FIRST_WINS).astype(np.int64)
        beyond = (
            np.where(score == 1, wins[:, 1], wins.sum(1))
            if upper
            else np.where(score == 0, wins[:, 0], wins.sum(1))
        )
        p = (1 + beyond) / (1 + wins.sum(1))
        grown[side] = np.cumsum(np.where(decided, -np.log(2 * p), 0.0))
    hit = np.flatnonzero((grown >= np.log(1 / alpha)).any(axis=0))
    return int(hit[0]) + 1 if len(hit) else 0


def _betting(votes: Votes, mine: Ints, expected: Floats, alpha: float) -> int:
    """Wealth of all bets together, from a stake of 1, against 1 / alpha.

    Args:
      expected: (j,) mean score of the first model of each of the voter's votes, by the others' votes.
    """
    m, j = len(votes.models), np.arange(len(mine))
    score = votes.outcome[mine] / FIRST_WINS
    log_wealth = np.zeros((len(mine), 2, m + 1))
    for bet, sign in enumerate((1.0, -1.0)):
        log_wealth[j, bet, votes.first[mine]] = np.log1p(sign * (score - expected))
        log_wealth[j, bet, votes.second[mine]] = np.log1p(sign * (expected - score))
        log_wealth[j, bet, m] = np.log1p(sign * (score - 0.5))  # sides are drawn by a fair coin
    total = np.cumsum(log_wealth, axis=0).reshape(len(mine), -1)
    hit = np.flatnonzero(logsumexp(total, axis=1) - np.log(total.shape[1]) >= np.log(1 / alpha))
    return int(hit[0]) + 1 if len(hit) else 0
