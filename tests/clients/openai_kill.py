"""The openai package and a cluster: the worker that runs a stream dies by kill -9, the text stays the same.

    python tests/clients/openai_kill.py http://127.0.0.1:8000 MODEL

The model decides how long the stream is; its worker dies after the fifth event.
"""

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from openai import OpenAI

URL, MODEL = sys.argv[1:3]
PROMPT = "def f("
KILL_AT = 5


def workers() -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{URL}/cluster/workers") as answer:
        told: list[dict[str, Any]] = json.load(answer)["workers"]
    return told


def stream(client: OpenAI) -> Iterator[str]:
    """The texts of a greedy completion's events."""
    chunks = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=200,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for chunk in chunks:
        yield chunk.choices[0].text


def kill_busy() -> int:
    """Kills the worker that has the stream; its place."""
    [busy] = [w for w in workers() if w["live"]]
    os.kill(busy["pid"], signal.SIGKILL)
    return int(busy["worker"])


def until_all_up(count: int, limit_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while sum(w["state"] == "up" for w in workers()) < count:
        assert time.monotonic() < deadline_s, workers()
        time.sleep(0.1)


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    count = len(workers())
    whole = "".join(stream(client))
    texts, died, longest_s = [], None, 0.0
    last_s = time.monotonic()
    for text in stream(client):
        texts.append(text)
        longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
        if len(texts) == KILL_AT:
            died = kill_busy()
    assert died is not None, f"the stream had {len(texts)} events; {KILL_AT} are needed"
    assert "".join(texts) == whole, ("".join(texts), whole)
    until_all_up(count)
    print(
        f"openai, kill -9 of worker {died} of {count} after event {KILL_AT} of {len(texts)}: ok, the same "
        f"{len(whole)} characters, longest pause {longest_s:.2f} s; it is up again"
    )


if __name__ == "__main__":
    main()
