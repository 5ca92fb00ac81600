"""What does it take to rig a ranking? Simulated attackers against simulated defences."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from mixattn.evals.arena.stats.anomalies import find_anomalies
from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.counts import Floats, Ints, count
from mixattn.evals.arena.stats.influence import cap_weights
from mixattn.evals.arena.stats.ranking import numbered
from mixattn.evals.arena.stats.synthetic import SyntheticConfig, simulate
from mixattn.evals.arena.stats.votes import FIRST_WINS, SECOND_WINS, Votes, from_arrays

ATTACKS = ("target_only", "omnipresent", "always_left")
DEFENCES = ("none", "cap", "anomaly", "cap + anomaly")


@dataclass(frozen=True)
class RiggingConfig:
    """The attacked arena, all simulated.

    Attributes:
      honest: votes of honest voters.
      accounts: accounts over which the attacker spreads the rigged votes.
      target: place, from 0, of the model to push.
      most: rigged votes beyond which the search gives up.
      cap: votes for which one voter counts at most, under the defence `cap`.
    """

    models: int = 20
    honest: int = 50_000
    voters: int = 3_000
    accounts: int = 1
    target: int = 10
    most: int = 20_000
    cap: float = 100.0
    seed: int = 0


def rigged_votes(attack: str, n: int, xi: Floats, target: int, rng: Generator) -> tuple[Ints, Ints, Ints]:
    """First model, second model and outcome of n votes that the attacker casts on drawn pairs.

    target_only: abstains unless the target is there, and votes for it. omnipresent: votes everywhere, for
    the target, against the model just above it, otherwise honestly. always_left: does not look.

    Raises:
      ValueError: there is no such attack.
    """
    m = len(xi)
    if attack not in ATTACKS:
        raise ValueError(f"attack {attack!r} is not one of {', '.join(ATTACKS)}")
    first = rng.integers(0, m, n)
    second = (first + rng.integers(1, m, n)) % m
    if attack == "always_left":
        return first, second, np.full(n, FIRST_WINS)
    if attack == "target_only":
        other = (target + rng.integers(1, m, n)) % m
        left = rng.random(n) < 0.5
        outcome = np.where(left, FIRST_WINS, SECOND_WINS)
        return np.where(left, target, other), np.where(left, other, target), outcome
    rival = target - 1
    outcome = np.where(rng.random(n) < 1 / (1 + np.exp(xi[second] - xi[first])), FIRST_WINS, SECOND_WINS)
    outcome = np.where(first == rival, SECOND_WINS, np.where(second == rival, FIRST_WINS, outcome))
    outcome = np.where(first == target, FIRST_WINS, np.where(second == target, SECOND_WINS, outcome))
    return first, second, outcome


def with_rigged(votes: Votes, attack: str, n: int, xi: Floats, config: RiggingConfig) -> Votes:
    """The honest votes with n rigged ones behind them."""
    rng = np.random.default_rng(config.seed + 1)
    rigged = rigged_votes(
        attack, config.most, xi, config.target, rng
    )  # a longer attack continues a shorter one
    judge = np.array([f"rigger_{i}" for i in range(config.accounts)], dtype=object)
    judges = np.concatenate([votes.columns["judge"], judge[np.arange(n) % config.accounts]])
    joined = [np.concatenate([a, b[:n]]) for a, b in zip((votes.first, votes.second, votes.outcome), rigged)]
    return from_arrays(votes.models, *joined, judge=judges)


def scores(votes: Votes, defence: str, cap: float) -> Floats:
    """(M,) scores under a defence.

    Raises:
      ValueError: there is no such defence.
    """
    if defence not in DEFENCES:
        raise ValueError(f"defence {defence!r} is not one of {', '.join(DEFENCES)}")
    if "anomaly" in defence:
        found = find_anomalies(votes, rule="betting", alpha=0.05, rng=np.random.default_rng(0))
        flagged = [verdict.voter for verdict in found if verdict.flagged]
        votes = votes.where(~np.isin(votes.columns["judge"].astype(str), flagged))
    weights = cap_weights(numbered(votes.columns["judge"]), cap) if "cap" in defence else None
    return fit(count(votes, weights)).xi


def votes_to_gain_a_place(
    attack: str, defence: str, config: RiggingConfig
) -> dict[str, float | int | str | None]:
    """The fewest rigged votes, by bisection, that move the target a place: by the distance of two neighbours.

    The distance is that of the true scores, measured on the model above, so that chance gaps of the honest
    votes do not matter. None: more than `most`. `moved_elo`: what `most` votes do, in Elo points.
    """
    world = SyntheticConfig(models=config.models, votes=config.honest, voters=config.voters, seed=config.seed)
    votes, xi = simulate(world)
    t = config.target

    def lead(n: int) -> float:
        found = scores(with_rigged(votes, attack, n, xi, config), defence, config.cap)
        return float(found[t] - found[t - 1])

    start, place = lead(0), float(xi[t - 1] - xi[t])
    moved = lead(config.most) - start
    needed = _first(lambda n: lead(n) - start >= place, config.most) if moved >= place else None
    elo = round(400 / np.log(10) * moved, 2)
    return {"attack": attack, "defence": defence, "votes_needed": needed, "moved_elo": elo}


def _first(holds: Callable[[int], bool], most: int) -> int:
    low, high = 0, most
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def table(config: RiggingConfig) -> list[dict[str, float | int | str | None]]:
    """Every attack against every defence, from one account and from many."""
    return [
        {"accounts": accounts} | votes_to_gain_a_place(attack, defence, replace(config, accounts=accounts))
        for accounts in dict.fromkeys((1, config.accounts))
        for attack in ATTACKS
        for defence in DEFENCES
    ]
