"""Service and gaps recomputed from a log by hand."""

import math

import pytest

from serving.fair import metrics

LOG = [
    {"t": 0.0, "event": "arrive", "id": "a1", "client": "a"},
    {"t": 0.0, "event": "arrive", "id": "b1", "client": "b"},
    {"t": 0.0, "event": "arrive", "id": "a2", "client": "a"},
    {"t": 0.0, "event": "arrive", "id": "b2", "client": "b"},
    {"t": 1.0, "event": "admit", "id": "a1", "client": "a", "extend": 10, "hit": 5},
    {"t": 2.0, "event": "tokens", "counts": {"a": 1}},
    {"t": 2.0, "event": "first_token", "id": "a1", "client": "a"},
    {"t": 3.0, "event": "tokens", "counts": {"a": 1}},
    {"t": 3.0, "event": "finish", "id": "a1", "client": "a"},
    {"t": 3.0, "event": "admit", "id": "b1", "client": "b", "extend": 40, "hit": 0},
    {"t": 4.0, "event": "cancel", "id": "b2", "client": "b"},
    {"t": 5.0, "event": "tokens", "counts": {"b": 50}},
    {"t": 5.0, "event": "first_token", "id": "b1", "client": "b"},
    {"t": 5.0, "event": "preempt", "id": "b1", "client": "b"},
    {"t": 6.0, "event": "admit", "id": "b1", "client": "b", "extend": 90, "hit": 0},
    {"t": 7.0, "event": "finish", "id": "b1", "client": "b"},
    {"t": 8.0, "event": "cancel", "id": "a2", "client": "a"},
]


def test_service_gap_and_waits_are_those_of_a_hand_made_log():
    found = metrics.report(LOG)
    assert found.service == {"a": 10 + 5 + 4, "b": 40 + 100}
    # a ran ahead by 19, then b by 40: the interval ends when b's last waiting request is cancelled.
    assert (found.gap, found.gap_pair) == (40, ("a", "b"))
    assert found.gap_curve == [(1.0, 15), (2.0, 17), (3.0, 19), (3.0, 40)]
    assert found.ttft_s == {"a": [2.0], "b": [5.0]}
    assert found.e2e_s == {"a": [3.0], "b": [7.0]}
    assert found.hit_rate == 5 / 55
    assert (found.finished, found.cancelled, found.preempted) == (2, 2, 1)
    assert found.table()["tok_per_s"] == (55 + 52) / 8


def test_a_hit_may_be_free():
    assert metrics.report(LOG, cached=0).service == {"a": 14, "b": 140}


def test_jain_is_one_for_equals_and_one_nth_for_a_monopoly():
    assert metrics.jain([3, 3, 3]) == 1
    assert metrics.jain([3, 0, 0]) == pytest.approx(1 / 3)


def test_percentiles_are_values_that_occur():
    assert [metrics.percentile([4.0, 1.0, 3.0, 2.0], p) for p in (0, 50, 75, 99)] == [1, 2, 3, 4]
    assert math.isnan(metrics.percentile([], 50))


def test_a_broken_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"t": 0, "event": "arrive", "id": "a", "client": "a"}\n{"t": 0, "event": "dance"}\n')
    with pytest.raises(ValueError, match="line 2 is not an event"):
        list(metrics.read(path))


def test_half_a_prefill_counts_half_and_the_other_half_later():
    log = [
        {"t": 0, "event": "arrive", "id": "a", "client": "a"},
        {"t": 1, "event": "admit", "id": "a", "client": "a", "extend": 8, "hit": 2},
        {"t": 2, "event": "preempt", "id": "a", "client": "a", "prefilled": 5},
        {"t": 3, "event": "admit", "id": "a", "client": "a", "extend": 10, "hit": 0},
        {"t": 4, "event": "cancel", "id": "a", "client": "a", "prefilled": 9},
    ]
    assert metrics.report(log[:3]).service == {"a": 5}
    assert metrics.report(log[:4]).service == {"a": 10}
    assert metrics.report(log).service == {"a": 9}
    log[4]["prefilled"] = 3  # less than the first admission had executed
    assert metrics.report(log).service == {"a": 5}


def test_clients_read_from_a_file_are_compared_by_name_not_by_object():
    first, second = "".join(["a", "b"]), "".join(["a", "b"])
    assert first is not second
    log = [
        {"t": 0.0, "event": "arrive", "id": "1", "client": first},
        {"t": 0.0, "event": "arrive", "id": "2", "client": first},
        {"t": 0.0, "event": "arrive", "id": "3", "client": "other"},
        {"t": 1.0, "event": "admit", "id": "1", "client": second, "extend": 5, "hit": 0},
        {"t": 2.0, "event": "tokens", "counts": {second: 3}},
    ]
    assert metrics.report(log).gap == 11
