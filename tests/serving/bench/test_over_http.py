"""The benchmark of the server: its arithmetic on logs that are known, and a server that does not start."""

import pytest

from serving.bench import over_http
from serving.bench.http_sides import BenchServer


def event(t, what, client, id=None):
    return {"t": t, "event": what, "client": client, "id": id}


def test_a_first_token_is_counted_from_the_engines_own():
    events = [
        event(1.0, "arrive", "one", "a"),
        event(1.010, "first_token", "one", "a"),
        event(2.0, "arrive", "many", "b"),
        event(2.100, "first_token", "many", "b"),
        *({"t": 3 + 0.02 * i, "event": "tokens", "counts": {"many": 8}} for i in range(5)),
        {"t": 9.0, "event": "tokens", "counts": {"one": 8}},
    ]
    told = {
        name: {"all": {"latency_ms": {"ttft": {"median": ms}}}}
        for name, ms in (("one", 12.5), ("many", 124.0))
    }
    one, many = over_http._first_token(events, told)
    assert one["value"] == pytest.approx(2.5)
    assert one["met"] == "yes"
    assert many["value"] == pytest.approx(24.0)
    assert (many["goal"], many["met"]) == ("<= 25.00", "yes"), "a step of 20 ms and 5 ms"


def test_a_server_that_does_not_start_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"did not start: error: --checkpoint=.* holds no model"):
        BenchServer(tmp_path, [0], tmp_path / "log.jsonl")
