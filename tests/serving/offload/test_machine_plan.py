"""A plan from one number: it fits, more memory never hurts, and what cannot fit says the least that works."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.spec import ModelConfig
from serving.offload.machine_plan import GIB, MachinePlanner, MachineRates, MachineWorkload, spread
from serving.offload.plan import Infeasible

CONFIG = ModelConfig(6, 1024, 8, 2, 128, 1792, 1024, n_experts=8, experts_per_token=2)
SLOT = 22_032_384


def planner(gib, requests=256, read_Bps=1e9):
    return MachinePlanner(
        CONFIG, MachineRates(read_Bps, 2e-3, 1e-4), MachineWorkload(requests, 96), gib * GIB,
        rest_bytes=70 << 20, slot_bytes=SLOT, kv_bytes=lambda rows: rows * (1 << 20),
    )  # fmt: skip


@given(st.floats(0.3, 3.0), st.integers(1, 400), st.sampled_from([None, "stream", "cache"]))
def test_a_plan_fits_its_memory_and_its_requests(gib, requests, mode):
    try:
        plan = planner(gib, requests).best(mode)
    except Infeasible:
        return
    assert sum(plan.bytes.values()) <= gib * GIB
    assert 1 <= plan.batch <= requests
    assert plan.mode == (mode or plan.mode)
    if plan.mode == "stream":
        assert plan.resident + planner(gib).buffer_slots(plan.resident) <= plan.slots or plan.resident == 48


@pytest.mark.parametrize("mode", [None, "stream", "cache"])
def test_more_memory_is_never_slower(mode):
    rates = [planner(0.5 + step / 8).best(mode).tokens_per_s for step in range(14)]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("mode", ["stream", "cache"])
def test_what_is_refused_names_the_least_that_works(mode):
    with pytest.raises(Infeasible) as refused:
        planner(0.1).best(mode)
    least = float(re.search(r"works is ([\d.]+) GiB", str(refused.value))[1])
    planner(least + 0.001).best(mode)
    with pytest.raises(Infeasible):
        planner(least - 0.01).best(mode)


def test_few_rows_cache_and_many_stream():
    """Reading all eight experts for two of them is waste; at many rows all are asked for anyway."""
    assert planner(0.75, requests=1).best().mode == "cache"
    assert planner(1.0, requests=256).best().mode == "stream"


def test_a_slow_disk_asks_for_more_rows():
    fast, slow = (planner(0.75, read_Bps=rate).best("stream").batch for rate in (2e9, 2e8))
    assert slow >= fast


@given(st.integers(0, 48))
def test_experts_that_stay_are_whole_and_spread_evenly(resident):
    chosen = spread(resident, (0, 1, 2, 3, 4, 5), 8)
    counts = [sum(layer == i for layer, _ in chosen) for i in range(6)]
    assert len(set(chosen)) == resident == sum(counts)
    assert max(counts) - min(counts) <= 1
