"""One budget of KV bytes, split into pools: within it, and as many requests as any split serves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.cache import Paged
from mixattn.spec import ModelConfig, kv_bytes
from serving.config import Limits
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.sizing import split
from serving.kvcache.tokens import TokenIds
from tests.serving.kv_groups import group

LIMITS = Limits(chunk_tok=6, step_tok=12, decode_steps=(4, 1))


def model(wiring: str, window: int = 8) -> ModelConfig:
    return ModelConfig(n_layers=len(wiring.split("_")), d_model=8, n_heads=1, n_kv_heads=1, head_dim=2,
                       d_ff=8, vocab_size=8, kv_wiring=wiring, window=window)  # fmt: skip


def at_once(config: ModelConfig, num_pages: int, window_pages: int, request_tok: int, page: int) -> int:
    """Requests that start together by the books."""
    windows = sorted({config.layers[o].window for o in config.owners}, key=lambda w: w or 0)
    pages = {None: num_pages, config.window: window_pages}
    if any(pages[w] < 2 for w in windows):
        return 0
    memory = KVCacheManager(
        [group(w, pages[w]) for w in windows], page_tok=page, max_slots=99, max_tok=request_tok, span_tok=6,
        step_tok=LIMITS.step_tok, reuse=False,
    )  # fmt: skip
    if memory.never_fits(request_tok):
        return 0
    while memory.admit(TokenIds([1] * request_tok), None, request_tok, reserve=True) is not None:
        pass
    return 99 - memory.slots_free


@given(
    wiring=st.sampled_from(["0_1", "0s_1s", "0_1s", "0_1s_2s_3s", "0_0_2s"]),
    window=st.sampled_from([3, 8, 40]),
    request_tok=st.integers(2, 40),
    budget=st.integers(500, 12_000),
)
def test_a_split_keeps_to_the_budget_and_no_other_serves_more(wiring, window, request_tok, budget):
    page = 4
    config = model(wiring, window)
    try:
        found = split(config, budget, request_tok=request_tok, page_size=page, limits=LIMITS)
    except ValueError:
        found = None
    page_bytes = kv_bytes(model("0"), page, config.dtype)
    full = sum(config.layers[o].window is None for o in config.owners)
    sliding = len(config.owners) - full
    if found:
        assert found.pool_bytes == page_bytes * (full * found.num_pages + sliding * found.window_pages)
        assert found.pool_bytes <= budget
        assert at_once(config, found.num_pages, found.window_pages, request_tok, page) == found.requests
    most = 0
    for num_pages in range(budget // (full * page_bytes) + 1) if full else [0]:
        rest = budget - num_pages * full * page_bytes
        window_pages = rest // (sliding * page_bytes) if sliding else 0
        most = max(most, at_once(config, num_pages, window_pages, request_tok, page))
    assert most == (found.requests if found else 0), "every other split of the budget, tried"


@pytest.mark.parametrize("kv_dtype", ["", "bfloat16", "int8"])
@pytest.mark.parametrize("wiring", ["0_1", "0s_1s", "0_1s_0_1s"])
def test_the_bytes_of_a_split_are_those_of_the_live_pools(wiring, kv_dtype):
    config = model(wiring)
    found = split(config, 20_000, request_tok=24, page_size=4, limits=LIMITS, kv_dtype=kv_dtype)
    pages = {kind: n for kind, n in (("full", found.num_pages), ("sliding", found.window_pages)) if n}
    each = dict.fromkeys(pages, 4)
    tables = dict.fromkeys(pages, 6)
    stored = kv_dtype or None
    cache = Paged.init(config, pages=pages, page_size=each, batch=0, table_pages=tables, dtype=stored)
    assert sum(cache.nbytes().values()) == found.pool_bytes <= 20_000


def test_a_budget_below_one_request_is_refused_with_both_figures():
    with pytest.raises(ValueError, match=r"40 tokens needs \d+ bytes of KV; the budget is 100"):
        split(model("0_1s"), 100, request_tok=40, page_size=4, limits=LIMITS)
