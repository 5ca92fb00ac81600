"""What a worker says counts as a whole or not at all."""

import dataclasses
import json

import pytest

from serving.cluster import reports
from serving.cluster.messages import LineSplitter
from serving.engine.stats import EngineStats

STATS = dataclasses.asdict(
    EngineStats(
        programs=1,
        compile_s={},
        pages={"full": (1, 2, 3, 6)},
        bytes_held=0,
        running=1,
        waiting=0,
        slots=4,
        policy_failure=None,
    )
)
RIGHT = {
    "a": [[3, 5, 0]],
    "d": [[3, 0, [7, 99], "ab", [[7, -0.5, [[7, -0.5]]], [99, -1, []]], ["stop", "end", 0]]],
    "r": [[4, "it is too long"]],
    "flushed": [2, True],
    "beat": {"stuck_s": 0.5, "failed": None, "stats": STATS},
}


def read(told):
    return reports.report_of(json.dumps(told).encode(), vocab=100)


def test_what_is_right_is_read():
    report = read(RIGHT)
    assert report.admitted == [(3, 5, 0)]
    ((attempt, number, delta),) = report.deltas
    assert (attempt, number, delta.ids, delta.text) == (3, 0, [7, 99], "ab")
    assert delta.output.finish_reason == "stop"
    assert report.refused == [(4, "it is too long")]
    assert report.flushed == (2, True)
    assert report.beat.stats.pages == {"full": (1, 2, 3, 6)}
    assert read({"hello": {"session": 1, "pid": 9, "slots": 4}}).hello["pid"] == 9


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe", b"{", b"7", b"null", b'"d"', b"[1]", b"[" * 100_000, b'{"d": 7}', b'{"d": [[1]]}'],
)
def test_what_is_no_line_is_refused(text):
    with pytest.raises(ValueError, match=r"^b"):
        reports.report_of(text)


def changed(path, value):
    """`RIGHT` with one value replaced; `path`: where it stands."""
    told = json.loads(json.dumps(RIGHT))
    part = told
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return told


WRONG = ["x", -1, 1.5, None, True, [], {}]
PLACES = {
    "attempt": (("d", 0, 0), ["x", 1.5, None, True, [], {}]),
    "number": (("d", 0, 1), ["x", 1.5, None, True, []]),
    "ids": (("d", 0, 2), ["x", 7, None, {}]),
    "a token": (("d", 0, 2, 0), [*WRONG, 100, 2**70]),
    "text": (("d", 0, 3), [7, None, [], {}]),
    "logprobs": (
        ("d", 0, 4),
        [7, "x", [7], [[1, 2]], [[100, -1.0, []]], [[1, "x", []]], [[1, 0.0, [[100, 0]]]]],
    ),
    "end": (("d", 0, 5), [7, "x", [], ["stop"], ["ended", None, 0], ["lost", None, 0], [[], None, 0]]),
    "admitted attempt": (("a", 0, 0), WRONG),
    "extend": (("a", 0, 1), WRONG),
    "hit": (("a", 0, 2), WRONG),
    "refused": (("r", 0), ["x", 7, [], [1], ["x", "y"]]),
    "flushed": (("flushed",), [7, "x", [], ["x", True]]),
    "beat": (("beat",), [7, "x", [], {}, {"stuck_s": 1}]),
    "stuck_s": (("beat", "stuck_s"), ["x", None, []]),
    "stats": (("beat", "stats"), [7, "x", {}, {**STATS, "more": 1}]),
    "a counter": (("beat", "stats", "output_tok"), ["x", None, [], {}]),
    "pages": (("beat", "stats", "pages"), [7, {"full": 7}, {"full": [1, 2, 3]}, {"full": [1, 2, 3, "x"]}]),
    "finished": (("beat", "stats", "finished"), [7, {"stop": "x"}]),
}


@pytest.mark.parametrize("place", PLACES)
def test_one_wrong_value_spoils_the_line(place):
    path, values = PLACES[place]
    for value in values:
        with pytest.raises(ValueError, match=r"^b"):
            read(changed(path, value))


@pytest.mark.parametrize(
    "hello", [7, {}, {"session": "x", "pid": 1, "slots": 4}, {"session": 1, "pid": 1, "slots": 0}]
)
def test_a_greeting_says_who_it_is_and_what_it_can_take(hello):
    with pytest.raises(ValueError, match=r"^b"):
        read({"hello": hello})
    assert reports.session_of(b"rubbish") == 0


def test_a_line_without_end_is_not_kept_for_ever():
    splitter = LineSplitter(max_bytes=1000)
    parts = [part for _ in range(50) for part in splitter.feed(b"x" * 99)]
    assert parts
    assert all(len(part) < 1100 for part in parts)
    with pytest.raises(ValueError, match=r"^b"):
        reports.report_of(parts[0])
