"""Three ledgers of the same tokens agree: what clients read in `usage`, /metrics, and the engine's log."""

import json
import random
import threading
import time
from collections import Counter

import pytest

from tests.serving.http.tiny_server import raw_post


def totals(server) -> Counter:
    names = ("prompt_tokens_total", "generation_tokens_total", "score_only_tokens_total")
    return Counter({name: round(server.metric(name)) for name in names})


def of_log(events) -> Counter:
    """Each prompt that began to run once, and every token."""
    prompts: dict[str, int] = {}
    tokens = 0
    for event in events:
        if event["event"] == "admit":
            prompts.setdefault(event["id"].partition("#")[0], event["extend"] + event["hit"])
        elif event["event"] == "tokens":
            tokens += sum(event["counts"].values())
    return Counter(prompt=sum(prompts.values()), tokens=tokens)


def settled_body(draw: random.Random) -> dict:
    prompt = draw.choice(["the quick", ["a", "the lazy dog"], [1, 2, 3], [[5] * 70, [6]]])
    body = {"prompt": prompt, "n": draw.randrange(1, 4), "max_tokens": draw.randrange(1, 30)}
    return body | draw.choice(
        [{}, {"stop": "a"}, {"temperature": 0}, {"echo": True, "logprobs": 1}, {"guided_regex": "[ab]{5}"}]
    )


def answered(server, seed: int, count: int) -> Counter:
    """Calls that run to their end, whole and streamed; the sum of their usage."""
    draw, sums = random.Random(seed), Counter()
    for i in range(count):
        body = settled_body(draw)
        if i % 5 == 4:
            body |= {"max_tokens": 0, "echo": True}
        if draw.random() < 0.5:
            usage = server.complete(**body)["usage"]
        else:
            options = {"stream_options": {"include_usage": True}}
            usage = list(server.stream("/v1/completions", {**body, **options}))[-2]["usage"]
        sums.update({name: usage[name] for name in ("prompt_tokens", "completion_tokens")})
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return sums


def disturbed(server, seed: int, count: int) -> None:
    """Calls that are left, aborted, late, refused, or answered."""
    draw = random.Random(seed)
    for i in range(count):
        body = {**settled_body(draw), "max_tokens": draw.randrange(1, 300), "rid": f"{seed}-{i}"}
        body |= draw.choice([{}, {"stream": True}, {"timeout": draw.choice([0.01, 0.1, 0.5])}, {"user": "u"}])
        sock = server.connect()
        sock.sendall(raw_post("/v1/completions", json.dumps(body).encode()))
        what = draw.randrange(4)
        if what == 0:
            time.sleep(draw.random() * 0.1)
        elif what == 1:
            server.post("/abort_request", {"rid": body["rid"]})
        elif what == 2:
            sock.recv(draw.randrange(1, 500))
        else:
            while sock.recv(65536):
                pass
        sock.close()


def check(start, calls: int, threads: int) -> None:
    server = start("--limit_queued_requests=40").ready()
    usage = answered(server, 0, calls)
    counted = totals(server)
    assert counted["prompt_tokens_total"] == usage["prompt_tokens"]
    assert counted["generation_tokens_total"] == usage["completion_tokens"]
    assert counted["score_only_tokens_total"] > 0
    running = [threading.Thread(target=disturbed, args=(server, seed, calls)) for seed in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    stats = server.until_idle()
    assert sum(stats["finished"].values()) == stats["arrived"]
    assert stats["finished"]["cancel"] > 0
    counted = totals(server)
    assert server.stop() == 0
    log = of_log(server.events())
    assert counted["prompt_tokens_total"] == log["prompt"]
    assert counted["generation_tokens_total"] + counted["score_only_tokens_total"] == log["tokens"]
    assert "Traceback" not in server.errors()


def test_usage_metrics_and_event_log_agree(start):
    check(start, 16, 3)


@pytest.mark.long
def test_they_agree_after_thousands_of_calls_too(start):
    check(start, 600, 8)
