"""The life of calls and of the process: who leaves, what takes too long, what fails, how it ends."""

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.serving.http.tiny_server import ServerProcess, exchange, raw_post

FAULTY = ("--limit_watchdog_s=0.5", "--limit_queued_requests=6", "--limit_queued_tok=1000")
LONG = {"prompt": "the quick", "max_tokens": 900, "ignore_eos": True}


def until(condition, limit_s=10.0):
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def begin(server, body, path="/v1/completions"):
    """A request whose answer nobody reads yet."""
    sock = server.connect()
    sock.sendall(raw_post(path, json.dumps(body).encode()))
    return sock


def test_who_leaves_a_stream_frees_all_its_outputs(server):
    before = server.until_idle()["finished"].get("cancel", 0)
    sock = begin(server, {**LONG, "stream": True, "n": 3, "prompt": ["a", "b"]})
    assert sock.recv(10)
    sock.close()
    stats = server.until_idle()
    assert stats["finished"]["cancel"] == before + 6


def test_who_leaves_before_a_whole_answer_frees_it_in_the_run_and_in_the_queue(server):
    before = server.until_idle()["finished"].get("cancel", 0)
    socks = [begin(server, {**LONG, "n": 2}) for _ in range(6)]  # 12 outputs on 4 slots
    until(lambda: server.stats()["running"] == 4 and server.stats()["waiting"] >= 4)
    for sock in socks:
        sock.close()
    assert server.until_idle()["finished"]["cancel"] == before + 12


def test_who_leaves_while_his_prompt_is_read_frees_it(server):
    before = server.until_idle()["finished"].get("cancel", 0)
    for _ in range(3):  # fifteen chunks each
        sock = begin(server, {"prompt": list(range(1, 300)) * 3, "max_tokens": 120, "ignore_eos": True})
        until(lambda: server.stats()["running"] == 1)
        sock.close()
        server.until_idle()
        server.post("/flush_cache")
    assert server.until_idle()["finished"]["cancel"] == before + 3


def test_a_cancel_that_races_with_the_end_ends_each_request_once(server):
    before, draw = server.until_idle(), random.Random(0)
    statuses: list[int] = []
    for i in range(30):
        rid = f"race {i}"
        body = {"prompt": "a", "max_tokens": 4, "ignore_eos": True, "rid": rid}
        asking = threading.Thread(target=lambda sent=body: statuses.append(server.complete_status(sent)))
        asking.start()
        time.sleep(draw.random() * 0.02)
        assert server.post("/abort_request", {"rid": rid})[0] in (200, 404)
        asking.join()
    after = server.until_idle()
    assert set(statuses) <= {200, 409}
    assert len(statuses) == 30
    ended = sum(after["finished"].values()) - sum(before["finished"].values())
    assert ended == after["arrived"] - before["arrived"] == 30


@pytest.mark.parametrize("stream", [False, True])
def test_who_only_ends_his_own_side_still_gets_his_answer(server, stream):
    before = server.until_idle()["finished"].get("cancel", 0)
    sock = begin(server, {**LONG, "max_tokens": 60, "stream": stream})
    sock.shutdown(socket.SHUT_WR)
    answer = exchange(sock, b"")
    final = answer[answer.index(b"HTTP/1.1 200") :]
    if stream:
        assert final.rstrip(b"\r\n0").endswith(b"[DONE]")
    else:
        assert json.loads(final.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 60
    assert server.until_idle()["finished"].get("cancel", 0) == before


def test_a_finished_answer_is_not_cancelled_again_by_its_clean_up(server):
    before = server.until_idle()["finished"].get("cancel", 0)
    for _ in range(20):
        assert list(server.stream("/v1/completions", {"prompt": "a", "max_tokens": 2}))[-1] == "[DONE]"
        server.complete()
    assert server.until_idle()["finished"].get("cancel", 0) == before


def test_a_deadline_in_the_queue_is_504_and_in_the_run_a_length(server):
    server.until_idle()
    status, answer = server.post("/v1/completions", {**LONG, "timeout": 0.15})
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "length"
    assert 0 < answer["usage"]["completion_tokens"] < 900
    held = [begin(server, LONG) for _ in range(4)]
    until(lambda: server.stats()["running"] == 4)
    status, answer = server.post("/v1/completions", {"prompt": "b", "timeout": 0.02})
    assert (status, answer["error"]["code"]) == (504, "timeout")
    for sock in held:
        sock.close()
    server.until_idle()


def test_abort_ends_a_request_by_the_id_it_came_with(server):
    server.until_idle()
    got = {}

    def ask():
        got["status"], got["answer"] = server.post("/v1/completions", {**LONG, "rid": "mine", "n": 2})

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: server.stats()["running"] == 2)
    status, answer = server.post("/v1/completions", {**LONG, "rid": "mine"})
    assert (status, answer["error"]["param"]) == (400, "rid")
    assert server.post("/abort_request", {"rid": "other"})[0] == 404
    assert server.post("/abort_request", {"rid": "mine"})[0] == 200
    asking.join(10)
    assert (got["status"], got["answer"]["error"]["code"]) == (409, "aborted")
    server.until_idle()
    server.complete(rid="mine")  # free again


def test_the_cache_is_flushed_only_when_idle(server):
    server.until_idle()
    sock = begin(server, LONG)
    until(lambda: server.stats()["running"] == 1)
    assert server.post("/flush_cache")[0] == 400
    sock.close()
    server.until_idle()
    assert server.post("/flush_cache")[0] == 200
    assert all(cached == 0 for _, cached, *_ in server.stats()["pages"].values())


def test_a_reader_who_stalls_is_cancelled_and_others_go_on(server):
    before = server.until_idle()["finished"].get("cancel", 0)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", server.port))
    body = {**LONG, "stream": True, "n": 64, "logprobs": 20}  # far more than stalls take
    sock.sendall(raw_post("/v1/completions", json.dumps(body).encode()))
    began_s = time.monotonic()
    until(lambda: server.stats()["finished"].get("cancel", 0) > before, 30)
    assert time.monotonic() - began_s < 30
    assert server.until_idle()["finished"]["cancel"] > before
    server.complete()
    sock.close()


@pytest.fixture(scope="module")
def faulty():
    running = ServerProcess(*FAULTY, module="tests.serving.http.faulty")
    try:
        yield running.ready()
        assert running.stop() == 0
    finally:
        running.close()


def test_a_full_queue_answers_every_request(faulty):
    server = faulty
    held = [begin(server, LONG) for _ in range(4)]
    until(lambda: server.stats()["running"] == 4)
    socks = [begin(server, {"prompt": "a", "max_tokens": 1}) for _ in range(30)]
    answers = [exchange(sock, b"") for sock in socks]
    codes = sorted(int(answer.split()[1]) for answer in answers)
    assert codes.count(503) == 24
    assert codes.count(200) == 6
    assert all(b"retry-after" in a.lower() for a in answers if b" 503 " in a[:20])
    assert all(b" 200 " in exchange(sock, b"")[:20] for sock in held)
    server.until_idle()
    # The place is taken before anything is tokenised: these prompts are too long, and nobody finds out.
    status, _, answer = server.request("POST", "/v1/completions", {"prompt": ["a" * 50_000] * 7})
    assert (status, answer["error"]["code"]) == (503, "queue_full")


def test_prompt_tokens_that_wait_are_limited_too(faulty):
    server = faulty
    held = [begin(server, LONG) for _ in range(4)]
    until(lambda: server.stats()["running"] == 4)
    first = begin(server, {"prompt": [5] * 900, "max_tokens": 1})
    until(lambda: server.stats()["waiting"] == 1)
    status, headers, answer = server.request(
        "POST", "/v1/completions", {"prompt": [5] * 900, "max_tokens": 1}
    )
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "queue_full", "1")
    for sock in held:
        sock.close()
    assert b" 200 " in exchange(first, b"")[:20]
    server.until_idle()


def test_an_engine_exception_fails_its_own_requests_only(faulty):
    server = faulty
    bystander = begin(server, {**LONG, "max_tokens": 200})
    until(lambda: server.stats()["running"] == 1)
    status, answer = server.post("/v1/completions", {"prompt": [7, 7], "max_tokens": 3})
    assert (status, answer["error"]["code"]) == (500, "engine_error")
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    server.complete()
    status, answer = server.post("/v1/completions", {"prompt": [11], "max_tokens": 3})  # a shape not compiled
    assert (status, answer["error"]["code"]) == (500, "engine_error")
    server.complete()
    status, answer = server.post("/v1/completions", {"prompt": [9], "max_tokens": 3})  # `step` itself raises
    assert (status, answer["error"]["code"]) == (500, "engine_error")
    server.complete()
    exchange(bystander, b"")
    assert server.stats()["resets"] == 3
    assert server.get("/health")[0] == 200
    server.until_idle()


def test_an_exception_after_the_first_token_is_an_event_and_then_the_end(faulty):
    server = faulty
    events = server.stream("/v1/completions", LONG)
    assert next(events)["choices"]
    threading.Thread(target=server.post, args=("/v1/completions", {"prompt": [9]})).start()
    last = list(events)[-1]
    assert last["error"]["code"] == "engine_error"
    server.complete()


def test_a_stuck_step_makes_health_fail_until_it_ends(faulty):
    server = faulty
    assert server.get("/health_generate")[0] == 200
    asking = threading.Thread(target=server.post, args=("/v1/completions", {"prompt": [8], "max_tokens": 1}))
    asking.start()
    until(lambda: server.get("/health")[0] == 503, 3)
    asking.join()
    assert server.get("/health")[0] == 200
    assert "unhealthy" in server.errors()


def test_three_failed_steps_in_a_minute_are_unhealthy(faulty):
    server = faulty  # the last test with it
    for _ in range(3):
        server.post("/v1/completions", {"prompt": [9]})
    status, answer = server.get("/health")
    assert (status, answer["error"]["code"]) == (503, "unhealthy")
    assert server.post("/v1/completions", {"prompt": "a"})[0] == 503


def test_the_socket_answers_before_the_model_is_ready_and_sigterm_drains(start):
    server = start()
    # The port is not printed before the ready line; find it where the kernel lists it.
    server.port = listening_port(server.process.pid)
    assert server.get("/health")[0] == 200
    for path in ("/ready", "/v1/models"):
        status, headers, answer = server.request("GET", path)
        assert (status, answer["error"]["code"], "retry-after" in headers) == (503, "starting", True)
    assert server.post("/v1/completions", {"prompt": "a"})[0] == 503
    server.ready()
    assert server.get("/ready")[0] == 200
    got = {}
    events = server.stream("/v1/completions", LONG)
    next(events)

    def ask():
        got["status"], got["answer"] = server.post("/v1/completions", {**LONG, "n": 6})

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: server.stats()["waiting"] > 0)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    status, headers, answer = server.request("POST", "/v1/completions", {"prompt": "a"})
    assert (status, answer["error"]["code"], "retry-after" in headers) == (503, "shutting_down", True)
    assert server.get("/ready")[0] == 503
    assert list(events)[-1] == "[DONE]"
    asking.join(30)
    assert got["status"] == 200
    assert len(got["answer"]["choices"]) == 6
    assert server.wait() == 0
    assert "Traceback" not in server.errors()


@pytest.mark.long
def test_what_outlasts_the_drain_ends_with_an_error_event(start):
    server = start("--limit_drain_s=0.3", "--max_model_len=4000").ready()
    events = server.stream("/v1/completions", {**LONG, "max_tokens": 3900})
    next(events)
    waiting = begin(server, {**LONG, "max_tokens": 3900})
    server.process.send_signal(signal.SIGTERM)
    assert list(events)[-1]["error"]["code"] == "shutting_down"
    assert b" 503 " in exchange(waiting, b"")[:20]
    assert server.wait() == 0


@pytest.mark.long
def test_a_second_signal_ends_at_once_with_every_connection_answered(start):
    server = start("--limit_drain_s=60", "--max_model_len=4000").ready()
    events = server.stream("/v1/completions", {**LONG, "max_tokens": 3900})
    next(events)
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.get("/ready")[0] == 503)
    began_s = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert list(events)[-1]["error"]["code"] == "shutting_down"
    assert server.wait() == 1
    assert time.monotonic() - began_s < 5


def listening_port(pid: int, limit_s: float = 60.0) -> int:
    import os

    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        inodes = set()
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except OSError:
                continue
        with open(f"/proc/{pid}/net/tcp") as table:
            for line in table.readlines()[1:]:
                words = line.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                    return int(words[1].split(":")[1], 16)
        time.sleep(0.05)
    raise AssertionError("it never listened")


FARM = """
import json, socket, sys
body = json.dumps({"prompt": "the quick", "max_tokens": 900, "ignore_eos": True, "stream": True})
head = "POST /v1/completions HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: application/json\\r\\n"
held = []
for i in range(20):
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.sendall(f"{head}Content-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    held.append(sock)
held[0].recv(100)
print("running", flush=True)
while True:
    for sock in held:
        sock.recv(1000)
"""


def test_kill_9_of_a_farm_of_clients_leaves_nothing(server):
    before = server.until_idle()["finished"].get("cancel", 0)
    farm = subprocess.Popen([sys.executable, "-c", FARM, str(server.port)], stdout=subprocess.PIPE, text=True)
    with farm:
        assert farm.stdout is not None
        assert farm.stdout.readline() == "running\n"
        farm.kill()
    assert server.until_idle()["finished"].get("cancel", 0) >= before + 15
    server.complete()


def test_no_part_of_the_server_reads_a_clock_that_can_jump():
    """`time.time` only dates answers; nothing waits by it."""
    folder = Path(__file__).resolve().parents[3] / "serving" / "http"
    uses = [
        line.strip()
        for path in sorted(folder.glob("*.py"))
        for line in path.read_text().splitlines()
        if "time.time()" in line
    ]
    assert len(uses) == 2
    assert all("created" in line for line in uses)
