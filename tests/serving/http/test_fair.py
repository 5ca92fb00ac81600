"""Two clients through the server: a flood cannot make a light client wait, and many names buy nothing."""

import asyncio
import hashlib
import json
import statistics
import time

import pytest

from serving import fair
from serving.fair import metrics

BODY = {"prompt": list(range(1, 25)), "max_tokens": 24, "ignore_eos": True, "stream": True}


async def first_token_s(port, headers=None, **fields):
    """Seconds from sending a request to its first token; reads the stream to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps({**BODY, **fields}).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(raw)}", "Connection: close", "", ""]
    began_s, first_s = time.monotonic(), None
    writer.write("\r\n".join(lines).encode() + raw)
    try:
        async for line in reader:
            if line.startswith(b"data: {") and first_s is None:
                first_s = time.monotonic() - began_s
    finally:
        writer.close()
    assert first_s is not None
    return first_s


async def closed_loop(port, inflight, seconds, found, **request):
    """`inflight` clients that each send the next request when the last has ended."""
    until_s = time.monotonic() + seconds

    async def one(i):
        while time.monotonic() < until_s:
            fields = {name: value(i) if callable(value) else value for name, value in request.items()}
            found.append(await first_token_s(port, **fields))

    await asyncio.gather(*(one(i) for i in range(inflight)))


def two_clients(port, inflight, seconds, flood, light):
    """Times to first token of a flood and of a light client beside it."""
    floods, lights = [], []

    async def both():
        flooding = asyncio.create_task(closed_loop(port, inflight, seconds, floods, **flood))
        await asyncio.sleep(seconds / 4)  # until the queue is as long as it gets
        await closed_loop(port, 1, seconds / 2, lights, **light)
        await flooding

    asyncio.run(both())
    return floods[len(floods) // 4 :], lights


def largest_gap(server):
    """The largest gap of the event log, and the bound that is proven for this engine."""
    info = server.get("/get_server_info", headers=getattr(server, "admin", None))[1]["engine"]
    server.stop()
    memory_tok = info["max_slots"] * info["max_request_tok"]
    longest = len(BODY["prompt"])
    bound = fair.make("vtc").gap_bound(memory_tok=memory_tok, max_prompt_tok=longest, max_hit_tok=longest)
    return metrics.report(server.events()).gap, bound


def test_a_light_client_does_not_wait_for_a_flood(start):
    server = start("--limit_queued_requests=200").ready()
    floods, lights = two_clients(server.port, 32, 4, {"user": "flood"}, {"user": "light"})
    assert len(lights) > 3
    assert statistics.median(lights) <= 0.25 * statistics.median(floods)
    gap, bound = largest_gap(server)
    assert 0 < gap <= bound


@pytest.mark.long
def test_first_come_first_served_is_the_control_that_fails(start):
    server = start("--policy=fcfs", "--limit_queued_requests=200").ready()
    floods, lights = two_clients(server.port, 32, 6, {"user": "flood"}, {"user": "light"})
    assert statistics.median(lights) > 0.25 * statistics.median(floods)


@pytest.mark.long
@pytest.mark.parametrize("keyed", [False, True])
def test_at_sixteen_slots_and_128_in_flight_too(start, tmp_path, keyed):
    flags = ["--slots=16", "--limit_queued_requests=400", "--kv_memory=64MiB"]
    flood, light = {"user": "flood"}, {"user": "light"}
    if keyed:
        flags.append(f"--api_keys={keys_file(tmp_path, 'flood', 'light')}")
        flood, light = ({"headers": bearer(name)} for name in ("flood", "light"))
    server = start(*flags).ready()
    server.admin = bearer("flood")
    floods, lights = two_clients(server.port, 128, 20, flood, light)
    ratio = statistics.median(lights) / statistics.median(floods)
    print(f"keys {keyed}: light p50 {statistics.median(lights):.3f} s is {ratio:.2f} of the flood's")
    assert ratio <= 0.25
    gap, bound = largest_gap(server)
    print(f"gap {gap:.0f}, bound {bound:.0f}")
    assert 0 < gap <= bound


@pytest.mark.long
def test_a_key_that_invents_a_hundred_users_gains_less_than_two_percent(start, tmp_path):
    path = keys_file(tmp_path, "many", "one")
    server = start(f"--api_keys={path}", "--limit_queued_requests=400").ready()

    async def both():
        await asyncio.gather(
            closed_loop(server.port, 50, 20, [], headers=bearer("many"), user=lambda i: f"u{i % 100}"),
            closed_loop(server.port, 50, 20, [], headers=bearer("one"), user="u"),
        )

    asyncio.run(both())
    server.stop()
    events = server.events()
    first_s, last_s = events[0]["t"], events[-1]["t"]
    share = {"many": 0, "one": 0}
    for event in events:
        # Both are backlogged from the beginning until the loops run out.
        if event["event"] == "tokens" and first_s + 2 < event["t"] < min(last_s, first_s + 18):
            for client, count in event["counts"].items():
                share[client.split("/")[0]] += count
    gain = share["many"] / (sum(share.values()) / 2) - 1
    print(f"100 users: {share}, a gain of {gain:.2%}")
    assert sum(share.values()) > 1000
    assert gain < 0.02


def keys_file(folder, *names):
    path = folder / "keys"
    path.write_text("".join(f"{n} {hashlib.sha256(n.encode()).hexdigest()} admin\n" for n in names))
    return path


def bearer(name):
    return {"Authorization": f"Bearer {name}"}
