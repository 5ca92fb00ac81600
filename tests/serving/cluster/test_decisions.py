"""The log of a router's decisions, replayed, gives the same decisions; and holds no text."""

import json

import pytest

from serving import fair
from serving.cluster.decisions import digests, recorded, replay
from tests.serving.cluster.fake_cluster import FakeCluster

OPTIONS = {"d2lpm": {"quantum_tok": 20, "weights": {"a": 2.0}}, "preble": {"window_s": 30.0}}


def logged(name, seed=1, events=1500):
    """Random events on a cluster whose router writes them down."""
    lines, options = [], OPTIONS.get(name, {})
    cluster = FakeCluster(name, seed, workers=0, **options)
    cluster.ingress.router = recorded(name, options, lambda event: lines.append(json.dumps(event)))
    for _ in range(3):
        cluster.join()
    for _ in range(events):
        cluster.event()
    cluster.finish()
    cluster.check_answers()
    cluster.check_ledgers()
    return lines


@pytest.mark.parametrize("name", fair.ROUTERS)
def test_a_replay_decides_as_the_router_did(name):
    found = replay(logged(name))
    assert found.router == name
    assert found.decisions > 100
    assert not found.difference


def test_another_router_decides_differently():
    lines = logged("d2lpm")
    head = json.dumps({"router": "round_robin", "options": {}})
    found = replay([head, *lines[1:]])
    assert "then" in found.difference
    assert found.decisions < len(lines) // 4


def test_a_lost_line_is_noticed():
    lines = logged("d2lpm")
    without = [line for i, line in enumerate(lines) if not ('"admitted"' in line and i % 3 == 0)]
    assert replay(without).difference


def test_the_log_holds_no_tokens():
    """A digest names the whole prefix, so equal blocks behind different prefixes differ."""
    one, other = digests([(b"a", 4), (b"b", 4)]), digests([(b"x", 4), (b"b", 4)])
    assert one[0] != other[0]
    assert one[1] != other[1]
    assert digests([(("", b"a"), 4)]) != digests([(("salt", b"a"), 4)])
    assert all(len(key) == 16 for key, _ in one)


@pytest.mark.parametrize(
    "lines", [[], ["{}"], ["[1]"], ['{"router": "d2lpm", "options": {}}', '{"do": "join"}']]
)
def test_what_is_no_log_is_refused_with_its_line(lines):
    with pytest.raises(ValueError, match=r"empty|line [12]"):
        replay(lines)
