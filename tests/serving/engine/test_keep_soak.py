"""Many tiny requests with eviction: all end once, nothing leaks, nothing compiles."""

import dataclasses

import pytest

from serving.bench.soak import EVICTING, TINY, soak
from serving.engine.engine import Engine
from serving.engine.invariants import check_idle
from tests.serving.tiny import model


@pytest.mark.long
@pytest.mark.parametrize("requests", [300, 10_000])
def test_a_soak_with_eviction_is_idle_clean_and_compiles_nothing(requests):
    config = dataclasses.replace(EVICTING, debug=requests < 1000)
    net = model("0_1s")
    assert net.config.vocab_size == TINY.vocab_size
    engine = Engine(net, config)
    soak(engine, 3, seed=0)
    found = soak(engine, requests, seed=1)
    assert (found["ended"], found["twice"], found["compiled"]) == (requests, [], [])
    assert engine.stats().evictions > 0
    check_idle(engine)
