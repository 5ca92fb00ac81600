from collections import Counter

import numpy as np
import pytest

from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.catalog import ArenaModel
from mixattn.evals.arena.platform.counted import CountedVotes
from mixattn.evals.arena.platform.drawing import REFRESH_VOTES, PairDraw

MODELS = {
    name: ArenaModel(name, scripted="x", weight=weight, broken=name == "wreck")
    for name, weight in (("ant", 1.0), ("bee", 2.0), ("cat", 1.0), ("wreck", 1.0))
}
ON = set(MODELS)


def pair_draw(**options):
    fields = {"active": False, "honeypots": 0.0, "rng": np.random.default_rng(0)} | options
    return PairDraw(MODELS, **fields)


def taken(*votes):
    """A snapshot of (model, model, winner, how often)."""
    counted = CountedVotes(lambda: None)
    for a, b, winner, times in votes:
        for _ in range(times):
            counted._add(a, b, winner, "v", 0.0, "other", "en", None)
    counted._read = frozenset
    return counted.snapshot()[0]


def test_pairs_come_by_products_of_weights_and_a_broken_model_never():
    table = pair_draw().table(ON, None)
    assert table == [("ant", "bee", 0.4), ("ant", "cat", 0.2), ("bee", "cat", 0.4)]
    drawn = Counter(
        frozenset(pair_draw(rng=np.random.default_rng(i)).draw(table, ON).models) for i in range(600)
    )
    assert 180 < drawn[frozenset(("ant", "bee"))] < 300


def test_sides_are_a_fair_coin_and_the_probability_is_the_tables():
    sampler = pair_draw()
    table = sampler.table(ON, None)
    drawn = [sampler.draw(table, ON) for _ in range(1000)]
    assert 420 < sum(each.models[0] < each.models[1] for each in drawn) < 580
    for each in drawn:
        assert (*sorted(each.models), each.probability) in table


def test_active_sampling_prefers_what_is_least_known_and_publishes_each_table():
    published = []
    sampler = pair_draw(active=True, changed=published.append)
    votes = (("ant", "bee", "model_a", 60), ("cat", "ant", "tie", 60), ("bee", "cat", "tie", 9))
    table = sampler.table(ON, taken(*votes))
    chance = {pair[:2]: pair[2] for pair in table}
    assert chance["bee", "cat"] > chance["ant", "cat"] > chance["ant", "bee"]
    assert sum(chance.values()) == pytest.approx(1)
    assert sampler.table(ON, taken(*votes, ("ant", "bee", "tie", 1))) is table  # not yet looked again
    sampler.table(ON, taken(*votes, ("ant", "bee", "tie", REFRESH_VOTES)))
    assert len(published) == 2
    assert published[0] == table


def test_honeypots_are_one_model_twice_or_a_broken_one_and_have_no_probability():
    sampler = pair_draw(honeypots=0.5)
    table = sampler.table(ON, None)
    drawn = [sampler.draw(table, ON) for _ in range(1000)]
    kinds = Counter(each.honeypot for each in drawn)
    assert 420 < kinds[""] < 580
    assert kinds["self"] > 180
    assert kinds["broken"] > 180
    for each in drawn:
        assert (each.probability is None) == bool(each.honeypot)
        assert (each.models[0] == each.models[1]) == (each.honeypot == "self")
        assert ("wreck" in each.models) == (each.honeypot == "broken")


def test_with_fewer_than_two_models_nothing_is_drawn():
    sampler = pair_draw()
    with pytest.raises(Refused, match="fewer than two"):
        sampler.draw(sampler.table({"ant", "wreck"}, None), {"ant", "wreck"})
