"""The command on real processes: the whole surface, losses, drains, and what it leaves behind."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.serving.cluster import chaos
from tests.serving.cluster.cluster_process import hurt, until, until_dead
from tests.serving.http.tiny_server import ROOT

GENERATE = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 900, "ignore_eos": True}}


def asked_meanwhile(server, bodies):
    """Asks each path in a thread; returns what waits for the answers: (status, headers, body) of each."""
    answers = {}

    def one(path):
        answers[path] = server.request("POST", path, bodies[path])

    threads = [threading.Thread(target=one, args=[path]) for path in bodies]
    for thread in threads:
        thread.start()

    def wait():
        for thread in threads:
            thread.join()
        return answers.values()

    return wait


def same(cluster, alone, path, **fields):
    """Both answers, which must not differ but in names and times."""
    found = []
    for server in (cluster, alone):
        status, answer = server.post(path, {"temperature": 0.0, **fields})
        assert status == 200, answer
        text = json.dumps(answer, sort_keys=True)
        found.append(re.sub(r'"(id|created|cached_tokens)": ("[^"]*"|\d+)', "", text))
    assert found[0] == found[1]
    return answer


def test_every_kind_of_call_is_answered_as_by_one_engine(cluster, alone):
    prompt = "the quick brown"
    same(cluster, alone, "/v1/completions", prompt=prompt, max_tokens=8)
    same(
        cluster, alone, "/v1/completions", prompt=[prompt, "def"], max_tokens=5, n=2, temperature=0.8, seed=3
    )
    same(cluster, alone, "/v1/completions", prompt=prompt, max_tokens=6, logprobs=3, echo=True)
    same(cluster, alone, "/v1/completions", prompt=prompt, max_tokens=12, guided_regex="[ab]{3,9}")
    same(cluster, alone, "/v1/completions", prompt=prompt, max_tokens=20, stop=["a"], presence_penalty=0.5)
    same(cluster, alone, "/generate", input_ids=[5, 6, 7], sampling_params={"max_new_tokens": 6})
    messages = [{"role": "user", "content": "hello"}]
    same(cluster, alone, "/v1/chat/completions", messages=messages, max_tokens=6)
    assert cluster.post("/tokenize", {"prompt": prompt}) == alone.post("/tokenize", {"prompt": prompt})


def test_a_bad_request_is_refused_here_in_one_sentence(cluster):
    for fields, status in (
        ({"max_tokens": 5000}, 400),
        ({"prompt": [99999]}, 400),
        ({"guided_regex": "["}, 400),
        ({"model": "other"}, 404),
    ):
        got, answer = cluster.post("/v1/completions", {"prompt": "a", "max_tokens": 2, **fields})
        assert (got, "message" in answer["error"]) == (status, True)


def test_a_second_call_finds_its_prefix_where_the_first_was(cluster):
    prompt = list(range(1, 200))
    for _ in range(2):
        status, answer = cluster.post(
            "/generate", {"input_ids": prompt, "sampling_params": {"max_new_tokens": 2}}
        )
        assert status == 200
    assert answer["meta_info"]["cached_tokens"] >= 128


def test_kill_9_in_the_middle_of_a_stream_changes_nothing_of_it(cluster, alone):
    numbers = range(1000, 1004)
    right = chaos.ask_all(alone, numbers)
    before = cluster.metric("redispatches_total")
    for pid in cluster.until_up(2).values():
        stream = cluster.stream("/v1/completions", {**chaos.body(1000), "max_tokens": 600})
        next(stream)
        answers = chaos.ask_all(cluster, numbers[:2])
        hurt(pid)
        rest = list(stream)
        assert rest[-1] == "[DONE]"
        assert rest[-2]["choices"][0]["finish_reason"] == "length"
        answers |= chaos.ask_all(cluster, numbers[2:])
        assert answers == right
        cluster.until_up(2)
    assert cluster.metric("redispatches_total") > before
    cluster.until_clean()


def test_a_stopped_worker_is_noticed_and_may_come_back(cluster, alone):
    right = chaos.ask_all(alone, range(2000, 2008))
    place, pid = next(iter(cluster.until_up(2).items()))
    hurt(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    assert cluster.get("/health")[0] == 200
    assert chaos.ask_all(cluster, range(2000, 2008)) == right
    assert time.monotonic() - began_s < 20
    assert next(w for w in cluster.workers() if w["worker"] == place)["state"] != "up"
    hurt(pid, signal.SIGCONT)
    assert cluster.until_up(2)[place] == pid, "it was not replaced: it came back in time"
    cluster.until_clean()


def test_a_worker_joins_and_another_leaves_gently(cluster):
    first = cluster.until_up(2)
    status, added = cluster.post("/cluster/workers", {})
    assert status == 202
    cluster.until_up(3)
    stream = cluster.stream("/v1/completions", {"prompt": "a", "max_tokens": 300, "ignore_eos": True})
    next(stream)
    leaving = min(first)
    assert cluster.post("/cluster/drain", {"worker": leaving})[0] == 202
    assert list(stream)[-1] == "[DONE]"
    until_dead([first[leaving]])
    assert {w["worker"] for w in cluster.workers()} == {*first, added["worker"]} - {leaving}
    assert cluster.post("/cluster/drain", {"worker": 99})[0] == 400
    cluster.until_clean()


def test_metrics_are_summed_and_told_by_worker(cluster):
    from prometheus_client.parser import text_string_to_metric_families

    cluster.complete(user="metrics", max_tokens=3)
    families = {f.name for f in text_string_to_metric_families(cluster.get("/metrics")[1].decode())}
    assert {
        "mixattn:worker_up",
        "mixattn:worker_hit_tok",
        "mixattn:dispatches",
        "mixattn:replicated_prefixes",
    } <= families
    assert cluster.metric("worker_up") == 2
    assert cluster.metric("dispatches_total") > 0


def test_the_page_has_a_lane_for_each_worker_and_no_markup_from_clients(cluster):
    cluster.complete(user="<i>me</i>", max_tokens=3)
    for path in ("/dashboard", "/dashboard/cluster.js", "/dashboard/cluster.css", "/dashboard/parts.js"):
        status, _, content = cluster.request("GET", path)
        assert status == 200
        assert b"innerHTML" not in content
        assert not re.search(rb"<script>|\son\w+=|style=", content)
    http_ = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=30)
    http_.request("GET", "/dashboard/events")
    shown = json.loads(http_.getresponse().readline().removeprefix(b"data: "))
    http_.close()
    assert [lane["state"] for lane in shown["lanes"]] == ["up", "up"]
    mine = next(c for c in shown["clients"] if c["name"] == "<i>me</i>")
    assert len(mine["credit"]) == 2
    assert mine["served"] > 0


def test_the_cache_is_flushed_on_all_workers_when_idle(cluster):
    cluster.until_clean()
    assert cluster.post("/flush_cache", {})[0] == 200
    assert cluster.metric("routed_blocks") == 0


def test_after_the_last_try_a_call_gets_503_and_a_stream_an_event_and_without_a_worker_all_get_503(start):
    lone = start("--heartbeat_s=1", "--grace_s=30", "--max_tries=1", workers=1).ready()
    pid, long = lone.pids()[0], {"prompt": "a", "max_tokens": 900, "ignore_eos": True}
    streams = [lone.stream("/v1/completions", {**long, "n": n}) for n in (1, 2)]
    for stream in streams:
        next(stream)
    wholes = asked_meanwhile(lone, {"/v1/completions": long, "/generate": GENERATE})
    until(lambda: lone.metric("worker_live") == 5)
    hurt(pid)
    for stream in streams:
        *_, last = stream
        assert last["error"]["code"] == "workers_lost", "no silent end"
    for status, headers, answer in wholes():
        assert (status, answer["error"]["code"]) == (503, "workers_lost")
        assert int(headers["retry-after"]) >= 1
    assert lone.metric("lost_outputs_total") == 5
    pid = lone.until_up(1)[0]
    lone.complete()
    hurt(pid, signal.SIGSTOP)
    deadline_s = time.monotonic() + 10
    while (answer := lone.request("GET", "/health"))[0] != 503:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert "retry-after" in answer[1]
    status, headers, answer = lone.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert (status, answer["error"]["code"]) == (503, "no_worker")
    assert "retry-after" in headers
    hurt(pid, signal.SIGCONT)
    lone.until_up(1)
    assert lone.get("/health")[0] == 200
    lone.complete()
    hurt(lone.process.pid, signal.SIGKILL)
    lone.process.wait()
    until_dead([pid])


def test_kill_9_of_the_ingress_takes_stopped_workers_along_and_ctrl_c_leaves_nothing(start):
    lone = start(workers=1).ready()
    pid = lone.pids()[0]
    hurt(pid, signal.SIGSTOP)
    hurt(lone.process.pid, signal.SIGKILL)
    lone.process.wait()
    until_dead([pid])
    other = start("--limit_drain_s=0.3", workers=1).ready()
    pid = other.pids()[0]
    stream = other.stream("/v1/completions", {"prompt": "a", "max_tokens": 900, "ignore_eos": True})
    next(stream)
    other.process.send_signal(signal.SIGINT)
    *_, last = stream
    assert last["error"]["code"] == "shutting_down", "the drain is over, and the stream says so"
    assert other.wait() == 0
    until_dead([pid])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--router_option=nonsense=1"], "nonsense"),
        (["--router=d2lpm", "--router_option=quantum_tok=0"], "quantum_tok is 0"),
        (["--cores=77"], "--cores names '77'"),
        (["--workers=4", "--max_workers=2"], "--max_workers=2 is less than --workers=4"),
        (["--queue=zzz"], "unknown policy 'zzz' of --queue"),
        (["--checkpoint=/nowhere"], "/nowhere"),
        (["--router=best"], "best"),
        (["--workers=0"], "workers"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(flags, said):
    done = subprocess.run(
        [sys.executable, "-m", "serving.cluster", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


class Brake(threading.Thread):
    """Lets a process run for a quarter of the time."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.over = pid, threading.Event()

    def run(self):
        while not self.over.is_set():
            hurt(self.pid, signal.SIGSTOP)
            time.sleep(0.03)
            hurt(self.pid, signal.SIGCONT)
            time.sleep(0.01)


@pytest.mark.long
def test_a_slow_worker_is_found_under_light_load_and_gets_less(start):
    server = start("--policy=vtc", workers=3).ready()
    brake = Brake(server.until_up(3)[2])
    brake.start()
    try:
        deadline_s, number = time.monotonic() + 120, 0

        def capacity(place):
            return server.metric("worker_capacity", worker=str(place))

        # Not a quarter: the others have to share the machine with more than one another.
        while capacity(2) >= 0.6 * min(capacity(0), capacity(1)):
            assert time.monotonic() < deadline_s, server.get("/metrics")[1].decode()
            chaos.ask_all(server, range(number, number + 3))  # one for each worker: light
            number += 3
    finally:
        brake.over.set()
        brake.join()
    assert server.metric("worker_losses") == 0
    assert server.stop(signal.SIGTERM) == 0, server.errors()
