"""The figures of records that are known by hand."""

import pytest

from serving.bench.client import report
from serving.bench.client.calls import CallRecord


def record(sent_s, text_s, output_tok, client="a", error=""):
    return CallRecord(
        client, sent_s, sent_s, text_s[-1], list(text_s), 200, error, len(text_s), 10, 0, output_tok, "length"
    )


RECORDS = [record(0.0, (0.1, 0.2, 0.3), 9), record(0.5, (1.0,), 1), record(0.2, (0.4, 0.9), 5, error="lost")]


def test_latencies_leave_failures_out_and_counts_do_not():
    told = report.figures(RECORDS, [50, 99], {})
    assert (told["requests"], told["completed"], told["failed"]) == (3, 2, 1)
    assert told["errors"] == {"lost": 1}
    assert told["latency_ms"]["ttft"]["median"] == pytest.approx((100 + 500) / 2)
    assert told["latency_ms"]["tpot"]["max"] == pytest.approx(200 / 8)
    assert told["output_throughput"] == pytest.approx(10 / 1.0)
    assert told["max_concurrent_requests"] == 2


def test_an_event_of_four_tokens_counts_as_four_gaps_of_a_quarter():
    samples = report.samples_ms([RECORDS[0]])
    assert samples["gap"] == pytest.approx([100, 100])
    assert samples["itl"] == pytest.approx([25] * 8)


def test_goodput_counts_who_meets_every_bound():
    for words, good in (
        (["ttft:200"], 1),
        (["ttft:600 e2el:550"], 2),
        (["ttft:600", "e2el:400"], 1),
        (["tpot:1"], 1),
    ):
        bounds = report.parse_goodput(words)
        assert report.figures(RECORDS[:2], [99], bounds)["request_goodput"] == pytest.approx(good / 1.0)
    for bad in ("ttft", "ttft:fast", "itl:3"):
        with pytest.raises(ValueError, match="--goodput"):
            report.parse_goodput([bad])


def test_back_to_back_requests_are_not_concurrent():
    assert report.peak_in_flight([record(0.0, (1.0,), 1), record(1.0, (2.0,), 1)]) == 1
    assert report.peak_in_flight([]) == 0
