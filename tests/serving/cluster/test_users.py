"""Programs that know a server by its URL alone run on a cluster; names and priorities reach the workers."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.serving.cluster.cluster_process import until
from tests.serving.http.tiny_server import ROOT, checkpoint


def test_the_load_client_needs_no_more_than_the_url_and_its_clients_are_told_apart(cluster, run_module):
    before = cluster.metric("generation_tokens_total")
    done = run_module(
        *("serving.bench.client", f"--base_url=http://127.0.0.1:{cluster.port}", "--num_prompts=6"),
        *("--client=light concurrency=1", "--client=flood concurrency=4"),
        *("--random_input_len=20", "--random_output_len=5", "--ignore_eos", "--warmup_requests=0", "--json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["all"]["completed"], told["all"]["failed"]) == (12, 0)
    cluster.until_clean()
    assert cluster.metric("generation_tokens_total") - before == 12 * 5
    for name in ("light", "flood"):
        assert cluster.metric("fairness_counter", client=name) == 6 * (20 + 2 * 5)


def test_names_and_priorities_decide_at_the_worker_who_goes_first(start):
    """All are at the one worker before its first slot is free, so that it alone decides."""
    lone = start("--policy=vtc", "--max_live=4", workers=1).ready()
    threads = []

    def ask(prompt_tok, client, priority=0, max_tokens=60):
        body = {"prompt": [1] * prompt_tok, "user": client, "priority": priority, "ignore_eos": True}
        asking = threading.Thread(target=lone.complete, kwargs={**body, "max_tokens": max_tokens})
        asking.start()
        threads.append(asking)
        live = len(threads)
        until(lambda: lone.metric("worker_live") >= live)

    for i in range(4):  # the slots; they are free one after the other
        ask(10 + i, "hot", max_tokens=400 + 100 * i)
    until(lambda: lone.stats()["running"] == 4)
    for prompt_tok, client, priority in ((20, "hot", 0), (21, "hot", 0), (30, "hot", -5), (40, "quiet", 0)):
        ask(prompt_tok, client, priority)
    for thread in threads:
        thread.join()
    assert lone.stop(signal.SIGTERM) == 0, lone.errors()
    order = [event["extend"] + event["hit"] for event in lone.events() if event["event"] == "admit"]
    assert order[4:] == [40, 30, 20, 21]


@pytest.mark.long
def test_the_judge_and_the_town_run_on_a_cluster(start):
    server = start("--max_model_len=4096", workers=2).ready()
    script, url = ROOT / "tests/clients/judge_and_town.py", f"http://127.0.0.1:{server.port}"
    done = subprocess.run(
        [sys.executable, str(script), url, checkpoint().name],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "judge and town: ok" in done.stdout
    assert server.until_clean()["slots"] == 8
    assert server.stop(signal.SIGTERM) == 0, server.errors()
