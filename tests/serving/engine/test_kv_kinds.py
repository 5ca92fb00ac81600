"""A third KV kind is one class on each side: a toy that keeps a window in a fixed ring of slots."""

import pytest

from mixattn.cache import FULL, SLIDING, Paged, kind_of
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.engine.kv_layout import KV_KINDS, KVKind, KVLayout
from serving.kvcache.groups import FullGroup, SlidingGroup
from tests.serving.engine.ring_group import RingGroup
from tests.serving.engine.ring_pages import RingPages
from tests.serving.tiny import check_against_teacher, finish, model, workload

PAGE, WINDOW, CHUNK = 4, 12, 8
BUDGET_PAGES = (WINDOW - 1 + CHUNK + PAGE) // PAGE + 1
RING = KVKind(
    RingPages(BUDGET_PAGES * PAGE),
    lambda model, config: RingGroup(BUDGET_PAGES, 1 + config.max_slots * BUDGET_PAGES),
)
CONFIG = EngineConfig(
    max_slots=4,
    page_size=PAGE,
    max_request_tok=64,
    prefill_rows=(4,),
    num_pages=65,
    limits=Limits(chunk_tok=CHUNK, step_tok=16, decode_steps=(4, 1)),
    debug=True,
)


@pytest.mark.parametrize("wiring", ["0s_0s_2_3s_3s_2", "0s_1s"])
def test_a_ring_of_slots_serves_the_tokens_of_the_whole_model(wiring):
    net = model(wiring, window=WINDOW)
    engine = Engine(net, CONFIG, kv_kinds=(KV_KINDS[0], RING))
    assert engine.stats().pages.keys() == ({"full", "ring"} if "2" in wiring else {"ring"})
    requests = workload(seed=4, n=9)
    check_against_teacher(requests, engine.run(requests), net)
    finish(engine)
    held = [pool.num_pages - 1 - len(pool) for pool in engine.memory.pools]
    assert held[-1] == 0, "a ring leaves nothing in the prefix tree"


def test_a_request_never_holds_more_than_its_budget():
    net = model("0s_1s", window=WINDOW)
    engine = Engine(net, CONFIG, kv_kinds=(RING,))
    peak = 0
    for request in workload(seed=1, n=9, max_tokens=20):
        engine.submit(request)
    while engine.live:
        engine.step()
        used, _, _, _ = engine.stats().pages["ring"]
        peak = max(peak, used)
        assert used <= BUDGET_PAGES * engine.stats().running
    assert peak > BUDGET_PAGES, "several ran at once"


def test_a_ring_too_small_for_its_window_gives_other_tokens():
    """The negative control: the equality above is not for free."""
    net = model("0s_1s", window=WINDOW)
    small = KVKind(RingPages(8), lambda model, config: RingGroup(2, 1 + config.max_slots * 2))
    engine = Engine(net, CONFIG, kv_kinds=(small,))
    requests = workload(seed=4, n=9)
    with pytest.raises(AssertionError):
        check_against_teacher(requests, engine.run(requests), net)


def test_a_layer_that_no_kind_matches_is_refused_by_number():
    with pytest.raises(ValueError, match=r"\['full'\] matches layer 0"):
        Engine(model("0s_1s"), CONFIG, kv_kinds=(KV_KINDS[0],))


def test_the_standard_kinds_follow_the_layers():
    net = model()
    layout = KVLayout.of(net.config, CONFIG)
    assert layout.names == ("full", "sliding")
    assert [type(g) for g in layout.groups] == [FullGroup, SlidingGroup]
    assert [kind_of(net.config.layers[i]) for i in net.config.owners] == [SLIDING, FULL, SLIDING]
    assert isinstance(layout.cache(net.config, CONFIG), Paged)
