"""Workers die, hang and are exchanged; each client's stream is the one of an engine that runs alone."""

import signal

import pytest

from serving.cluster.decisions import replay
from tests.serving.cluster import chaos

COUNT = 200


@pytest.mark.parametrize("transport", ["http", pytest.param("ray", marks=pytest.mark.ray)])
def test_200_streams_through_kills_stops_and_exchanges_are_whole_and_right(start, alone, tmp_path, transport):
    if transport == "ray":
        pytest.importorskip("ray")
    log = tmp_path / "decisions.jsonl"
    times = ("--heartbeat_s=1", "--grace_s=2", "--max_tries=100")
    cluster = start(*times, f"--decision_log={log}", workers=3, transport=transport).ready()
    right = chaos.ask_all(alone, range(COUNT))
    assert all(not a.error and a.ends == ["length"] for a in right.values())
    trouble = chaos.Troublemaker(cluster, seed=1)
    trouble.start()
    answers = chaos.ask_all(cluster, range(COUNT))
    trouble.end()
    for number in range(COUNT):
        assert answers[number] == right[number], f"request {number} of {trouble.done}"
    cluster.until_up(3)
    stats = cluster.until_clean()
    assert cluster.metric("redispatches_total") > 0, trouble.done
    assert min(trouble.done.values()) >= 1, trouble.done
    for client, due in chaos.service(range(COUNT), answers).items():
        assert cluster.metric("fairness_counter", client=client) == due, "every token is paid for once"
    assert cluster.metric("worker_live") == 0
    assert stats["slots"] == 12
    assert cluster.stop(signal.SIGTERM) == 0, cluster.errors()
    assert "Traceback" not in cluster.errors(), cluster.errors()
    with log.open() as lines:
        found = replay(lines)
    assert found.decisions >= COUNT
    assert not found.difference
