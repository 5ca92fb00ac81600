"""The measures that see starvation agree with a brute-force fluid reference in fractions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.fair import metrics
from serving.fair.fluid_lag import FluidLagMeter
from serving.fair.gap_meter import GapMeter
from serving.fair.service_report import LatencyTarget
from serving.fair.statistics import interval
from tests.serving.fair.fluid_oracle import FluidOracle
from tests.serving.fair.scenario import run_scenario
from tests.serving.fair.test_bounds import OPTIONS, scenarios

WEIGHTS = {"c0": 3, "c1": Fraction(1, 2), "c3": 2}


@settings(max_examples=40)
@given(
    scenario=scenarios("vtc"),
    policy=st.sampled_from(["fcfs", "vtc", "rr", "drr", "lcf"]),
    weighted=st.booleans(),
    admission=st.sampled_from(["reserve", "optimistic"]),
)
def test_lag_gap_and_pause_are_those_of_a_brute_force_fluid_reference(scenario, policy, weighted, admission):
    scenario.policy, scenario.options, scenario.admission = policy, OPTIONS.get(policy, {}), admission
    run = run_scenario(scenario)
    weights = WEIGHTS if weighted else {}
    found = metrics.report(run.log, weights={c: float(w) for c, w in weights.items()})
    seen = FluidOracle(run.log, weights)
    assert found.gap == pytest.approx(float(seen.weighted_gap()), abs=1e-9)
    for client in seen.served:
        assert found.lag[client] == pytest.approx(float(seen.lag(client)), abs=1e-6)
        assert found.pause_s.get(client, 0.0) == pytest.approx(seen.pause(client), abs=1e-9)


def test_fluid_shares_sum_to_what_was_given():
    meter = FluidLagMeter({"a": 3.0})
    for client in "ab":
        meter.arrive(client)
        meter.join(client)
    meter.serve({"b": 8.0})
    assert meter.virtual == 2.0, "8 tokens over the weights 3 and 1"
    assert meter.lags() == {"a": 6.0, "b": 0.0}, "a is entitled to 6 of the 8"
    assert meter.shares() == {"a": 0.0, "b": 4.0}
    assert meter.jain() == 0.5


def test_a_weight_that_changes_keeps_what_was_due_before():
    meter = FluidLagMeter()
    for client in "ab":
        meter.arrive(client)
        meter.join(client)
    meter.serve({"b": 10.0})
    meter.set_weight("a", 4.0)
    assert meter.lags()["a"] == 5.0, "half of the 10 tokens, not four fifths"
    meter.serve({"b": 10.0})
    assert meter.lags()["a"] == 8.0, "from the change on, four fifths"


def test_one_wait_after_the_other_is_not_one_long_wait():
    meter = FluidLagMeter()
    for client in "ab":
        meter.arrive(client)
    for _ in range(3):
        meter.join("a")
        meter.serve({"b": 10.0})
        meter.leave("a")
        meter.serve({"b": 100.0})
    assert meter.lags() == {"a": 5.0, "b": 0.0}


def log_of(*events):
    return [{"t": t, "event": kind, "id": id, "client": id[0], **more} for t, kind, id, more in events]


def test_a_target_counts_both_latencies_and_everybody_who_asked():
    log = log_of(
        *((0.0, "arrive", f"a{i}", {}) for i in range(3)),
        (0.0, "arrive", "b0", {}),
        *((1.0, "admit", id, {"extend": 1, "hit": 0}) for id in ("a0", "a1", "b0")),
        (1.0, "first_token", "a0", {}),
        (2.0, "first_token", "a1", {}),
        (4.0, "first_token", "b0", {}),
        (4.0, "finish", "a0", {"output": 4}),
        (8.0, "finish", "a1", {"output": 4}),
        (9.0, "finish", "b0", {"output": 1}),
        (10.0, "cancel", "a2", {}),
    )
    found = metrics.report(log, target=LatencyTarget(ttft_s=3.0, tpot_s=1.5))
    assert found.tpot_s == {"a": [1.0, 2.0]}
    assert found.in_target == {"a": 1}, "a1 is slow per token, b0 late, a2 cancelled"
    assert (found.attainment, found.least_attainment, found.goodput) == (0.25, 0.0, 0.1)
    assert metrics.report(log).attainment == 0.75, "without thresholds, whoever finishes is in time"
    with pytest.raises(ValueError, match="the target ttft_s is 0"):
        LatencyTarget(ttft_s=0)


def test_a_pause_that_never_ends_is_seen_until_the_end_of_the_log():
    log = log_of(
        (0.0, "arrive", "a0", {}),
        (1.0, "arrive", "b0", {}),
        (7.5, "cancel", "b0", {}),
        (9.0, "arrive", "b1", {}),
    )
    found = metrics.report(log)
    assert found.pause_s == {"a": 9.0, "b": 6.5}
    assert found.table()["pause_client"] == "a"


def test_clients_can_be_measured_as_one():
    log = [
        *log_of(*((0.0, "arrive", id, {}) for id in ("x0", "y0", "z0", "z1", "x1"))),
        *log_of((1.0, "admit", "x0", {"extend": 4, "hit": 0}), (1.0, "admit", "y0", {"extend": 2, "hit": 0})),
        {"t": 2.0, "event": "tokens", "counts": {"x": 1, "y": 2}},
    ]
    found = metrics.report(log, group_of={"x": "town", "y": "town"})
    assert found.service == {"town": 12.0, "z": 0.0}
    assert (found.gap, found.gap_pair) == (12.0, ("town", "z"))


def test_the_gap_meter_says_when_it_had_no_room():
    served = dict.fromkeys("abcd", 0.0)
    meter = GapMeter(max_clients=2)
    for client in "abcd":
        meter.join(client, served)
    served |= {"b": 5.0, "d": 9.0}
    meter.update("bd", served)
    assert (meter.largest, meter.pair, meter.left_out) == (5.0, ("a", "b"), 2)
    meter.leave("d")
    meter.leave("a")
    meter.leave("b")
    meter.leave("c")
    assert not meter.waiting


def test_6000_waiting_clients_are_compared_in_little_memory():
    """All pairs of them were 3.8 GB of dictionaries."""
    import tracemalloc

    served = {f"c{i}": 0.0 for i in range(6000)}
    tracemalloc.start()
    meter = GapMeter()
    for client in served:
        meter.join(client, served)
    served["c7"] = 11.0
    meter.update(["c7"], served)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert meter.largest == 11.0
    assert peak < 100e6


def test_an_interval_is_that_of_student():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.high - found.mean == pytest.approx(2.776 * math.sqrt(2.5 / 5))
    assert math.isnan(interval([2.0]).low)
    assert interval([math.nan, 4.0]).mean == 4.0
