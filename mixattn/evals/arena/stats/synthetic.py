"""Votes with a known truth: models, pairs, ties, voters, style and anomalous voters. All of it is
simulated."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.special import expit

from mixattn.evals.arena.stats.counts import Floats, Ints
from mixattn.evals.arena.stats.votes import FIRST_WINS, SECOND_WINS, TIE, Votes, from_arrays

WORLDS = ("spread", "tied", "equal", "beta")
ANOMALIES = ("none", "random", "always_left", "opposite", "favourite")
LABEL = {FIRST_WINS: "model_a", SECOND_WINS: "model_b", TIE: "tie"}
FIRST_DAY_S = 1_700_000_000.0


@dataclass(frozen=True)
class SyntheticConfig:
    """A world of votes.

    Attributes:
      models: number of models.
      votes: number of votes.
      world: true scores. spread: evenly over `width`; tied: groups of four alike; equal: all 0; beta:
        Beta(1/2, 1/2).
      width: distance of best and worst score, in natural-log odds.
      tie_rate: share of votes that are ties, for every pair.
      skew: 0 draws pairs uniformly; above 0, close models meet more often.
      voters: voters, whose numbers of votes follow Zipf's law.
      anomaly: how `anomalous` of the voters vote.
      style_beta: weight of the difference in answer length on the vote.
      intransitive: strength of a cycle through the models, which Bradley-Terry cannot express.
    """

    models: int = 10
    votes: int = 10_000
    world: str = "spread"
    width: float = 2.0
    tie_rate: float = 0.2
    skew: float = 0.0
    voters: int = 500
    anomaly: str = "none"
    anomalous: int = 0
    style_beta: float = 0.0
    intransitive: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Refuses what cannot be simulated.

        Raises:
          ValueError: says which field and why.
        """
        if self.models < 2 or self.votes < 1 or self.voters < 1:
            raise ValueError(
                f"{self.models} models, {self.votes} votes, {self.voters} voters: needs 2, 1 and 1"
            )
        if self.world not in WORLDS or self.anomaly not in ANOMALIES:
            raise ValueError(
                f"world {self.world!r} or anomaly {self.anomaly!r} is not one of {WORLDS}, {ANOMALIES}"
            )
        if not 0 <= self.tie_rate < 1 or self.anomalous > self.voters:
            raise ValueError(
                f"tie_rate {self.tie_rate}, or {self.anomalous} anomalous of {self.voters} voters"
            )


def true_scores(config: SyntheticConfig, rng: Generator) -> Floats:
    """(M,) with mean 0."""
    m = config.models
    if config.world == "equal":
        xi = np.zeros(m)
    elif config.world == "tied":
        xi = np.repeat(np.linspace(1, 0, -(-m // 4)), 4)[:m] * config.width
    elif config.world == "beta":
        xi = rng.beta(0.5, 0.5, m) * config.width
    else:
        xi = np.linspace(1, 0, m) * config.width
    return xi - xi.mean()


def pair_probabilities(xi: Floats, skew: float) -> tuple[Ints, Ints, Floats]:
    """(K,) lower model, upper model and probability of each unordered pair."""
    low, high = np.triu_indices(len(xi), 1)
    weight = np.exp(-skew * np.abs(xi[low] - xi[high]))
    return low, high, weight / weight.sum()


def simulate(config: SyntheticConfig) -> tuple[Votes, Floats]:
    """The votes, and the true scores (M,).

    The columns are pair_probability, judge, length_a and length_b; models are named m00, m01, ... in true
    order.
    """
    config.check()
    rng = np.random.default_rng(config.seed)
    xi = true_scores(config, rng)
    low, high, probability = pair_probabilities(xi, config.skew)
    pair = rng.choice(len(low), config.votes, p=probability)
    left = rng.random(config.votes) < 0.5
    first, second = np.where(left, low[pair], high[pair]), np.where(left, high[pair], low[pair])
    length = rng.integers(20, 600, (2, config.votes))
    logit = xi[first] - xi[second]
    logit = logit + config.style_beta * (length[0] - length[1]) / (length[0] + length[1] + 1)
    logit = logit + config.intransitive * np.where(
        (second - first) % config.models * 2 < config.models, 1, -1
    )
    outcome = np.where(rng.random(config.votes) < expit(logit), FIRST_WINS, SECOND_WINS)
    outcome = np.where(rng.random(config.votes) < config.tie_rate, TIE, outcome)
    voter = zipf_voters(config.voters, config.votes, rng)
    outcome = _misvote(config, voter, first, second, xi, outcome, rng)
    names = tuple(f"m{i:02d}" for i in range(config.models))
    judge = np.array([f"arena_user_{v}" for v in range(config.voters)], dtype=object)[voter]
    columns = {
        "pair_probability": probability[pair],
        "judge": judge,
        "length_a": length[0],
        "length_b": length[1],
    }
    return from_arrays(names, first, second, outcome, **columns), xi


def zipf_voters(voters: int, votes: int, rng: Generator) -> Ints:
    """(n,) the voter of each vote; voter v casts in proportion to 1 / (v + 1)."""
    share = 1.0 / np.arange(1, voters + 1)
    return rng.choice(voters, votes, p=share / share.sum())


def _misvote(
    config: SyntheticConfig, voter: Ints, first: Ints, second: Ints, xi: Floats, outcome: Ints, rng: Generator
) -> Ints:
    """The outcomes, with those of the anomalous voters replaced."""
    odd = voter < config.anomalous
    if config.anomaly == "random":
        other = rng.integers(0, 3, len(voter))
    elif config.anomaly == "always_left":
        other = np.full(len(voter), FIRST_WINS)
    elif config.anomaly == "opposite":
        other = FIRST_WINS - outcome
    elif config.anomaly == "favourite":
        other = np.where(
            first == len(xi) - 1, FIRST_WINS, np.where(second == len(xi) - 1, SECOND_WINS, outcome)
        )
    else:
        return outcome
    return np.where(odd, other, outcome)


def records(votes: Votes) -> Iterator[dict[str, Any]]:
    """The votes in the public format, one a second."""
    for i in range(len(votes)):
        yield {
            "question_id": f"q{i:07d}",
            "model_a": votes.models[votes.first[i]],
            "model_b": votes.models[votes.second[i]],
            "winner": LABEL[int(votes.outcome[i])],
            "judge": votes.columns["judge"][i],
            "anony": True,
            "language": "English" if i % 4 else "German",
            "tstamp": FIRST_DAY_S + i,
            "pair_probability": float(votes.columns["pair_probability"][i]),
            "conv_metadata": {
                "sum_assistant_a_tokens": int(votes.columns["length_a"][i]),
                "sum_assistant_b_tokens": int(votes.columns["length_b"][i]),
                **{f"{what}_count_{side}": 0 for what in ("header", "list", "bold") for side in "ab"},
            },
        }


def json_lines(votes: Votes) -> Iterator[str]:
    """The votes as lines of JSON."""
    return (json.dumps(record) + "\n" for record in records(votes))
