"""What a stream says is read alike however the network cut it."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.bench.client.calls import CallRecord, events, read_stream, request_bytes
from serving.bench.client.connection import RawAnswer, ServerAddress

EVENTS = [
    {"id": "cmpl-1", "choices": [{"index": 0, "text": "he", "finish_reason": None}], "usage": None},
    {"id": "cmpl-1", "choices": [{"index": 0, "text": "llö", "finish_reason": None}], "usage": None},
    {"id": "cmpl-1", "choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": None},
    {"id": "cmpl-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}},
]
RAW = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in EVENTS) + b"data: [DONE]\n\n"


def answer(raw, status=200):
    return RawAnswer(status, {}, [(1.0 + i, bytes([b])) for i, b in enumerate(raw)])


@given(st.lists(st.integers(1, len(RAW)), max_size=8))
def test_events_do_not_depend_on_how_the_bytes_were_cut(cuts):
    edges = [0, *sorted(cuts), len(RAW)]
    pieces = [(float(i), RAW[a:b]) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    assert [data for _, data in events(pieces)] == [data for _, data in events([(0.0, RAW)])]


def test_a_record_holds_counts_of_usage_and_the_time_of_each_event_with_text():
    record = CallRecord("a", sent_s=0.5, end_s=1e3)
    read_stream(record, answer(RAW))
    assert not record.error
    assert (record.prompt_tok, record.output_tok, record.finish_reason) == (7, 9, "length")
    assert (record.id, record.events, len(record.text_s)) == ("cmpl-1", 5, 2)
    line_ends = [i for i, b in enumerate(RAW) if b == ord("\n")]
    assert record.text_s == [1.0 + line_ends[0], 1.0 + line_ends[2]]
    assert record.tpot_s == pytest.approx((record.text_s[1] - record.text_s[0]) / 8)


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (RAW[:-14], 200, "ended before"),
        (b"data: {nonsense\n\n", 200, "not as the protocol says"),
        (b"data: []\n\n", 200, "not as the protocol says"),
        (b'data: {"error": {"message": "no slot"}}\n\n', 200, "no slot"),
        (b'{"error": {"message": "queue full"}}', 503, "HTTP 503: queue full"),
        (b"<html>", 502, "HTTP 502: <html>"),
        (b"", 200, "ended before"),
    ],
)
def test_a_broken_answer_is_an_error_and_never_a_latency(raw, status, says):
    record = CallRecord("a")
    read_stream(record, answer(raw, status))
    assert says in record.error


def test_a_chat_role_is_no_first_token():
    made = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"delta": {"content": "hi"}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    pieces = [(float(i), b"data: " + json.dumps(e).encode() + b"\n\n") for i, e in enumerate(made)]
    record = CallRecord("a")
    read_stream(record, RawAnswer(200, {}, [*pieces, (9.0, b"data: [DONE]\n\n")]))
    assert (record.error, record.text_s, record.output_tok) == ("", [1.0], 1)


def test_a_line_break_in_a_header_is_refused():
    server = ServerAddress.parse("http://localhost:1/v1/")
    assert (server.host, server.port, server.prefix) == ("localhost", 1, "")
    assert ServerAddress.parse("https://api.example/base/v1").prefix == "/base"
    with pytest.raises(ValueError, match="line break"):
        request_bytes(server, "/", {}, {"Authorization": "Bearer a\r\nX: y"})
    for bad in ("localhost:8000", "ftp://a", "http://a:port", "http://"):
        with pytest.raises(ValueError, match="is not like"):
            ServerAddress.parse(bad)
