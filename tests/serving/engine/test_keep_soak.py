"""Many tiny requests with eviction: all end once, nothing leaks, nothing compiles."""

import pytest

from serving.bench.soak import TINY, soak
from serving.config import EngineConfig, KeepSettings, Limits
from serving.engine.engine import Engine
from serving.engine.invariants import check_idle
from tests.serving.tiny import model


@pytest.mark.long
@pytest.mark.parametrize("requests", [300, 10_000])
def test_a_soak_with_eviction_is_idle_clean_and_compiles_nothing(requests):
    config = EngineConfig(
        max_slots=4,
        page_size=4,
        num_pages=24,
        window_pages=28,
        max_request_tok=64,
        prefill_rows=(4,),
        policy="vtc",
        limits=Limits(chunk_tok=16, step_tok=32, admission="optimistic"),
        keep=KeepSettings(slab_tok=8, recent_tok=3, scorers=("streaming",), snapshots=3, prefilling=2),
        debug=requests < 1000,
    )
    net = model("0_1s")
    assert net.config.vocab_size == TINY.vocab_size
    engine = Engine(net, config)
    soak(engine, 3, seed=0)
    found = soak(engine, requests, seed=1)
    assert (found["ended"], found["twice"], found["compiled"]) == (requests, [], [])
    assert engine.stats().evictions > 0
    check_idle(engine)
