"""Requests, their right answers, and troubles for real workers."""

import contextlib
import itertools
import random
import signal
import threading
import time
from dataclasses import dataclass, field

from tests.serving.cluster.cluster_process import hurt

CLIENTS = ("hot", "v0", "v1", "v2")


@dataclass
class Answer:
    """What a client of a stream has seen."""

    tokens: list = field(default_factory=list)
    text: str = ""
    ends: list = field(default_factory=list)
    error: object = None


def body(number):
    """The request of a number: clients share prefixes, half of the outputs are sampled."""
    rng = random.Random(number)
    client = CLIENTS[0] if number % 2 else rng.choice(CLIENTS)
    prefix = [(17 * CLIENTS.index(client) + i) % 300 + 1 for i in range(96)]
    own = [rng.randrange(1, 300) for _ in range(rng.randint(4, 40))]
    return {
        "prompt": prefix + own,
        "user": client,
        "max_tokens": rng.randint(60, 200),
        "temperature": 0.9 if number % 4 == 0 else 0.0,
        "seed": number,
        "logprobs": 0,
        "ignore_eos": True,
        "priority": rng.choice([0, 0, 1]),
    }


def ask(server, number):
    """Streams one answer; busy and out of order are tried again, as their Retry-After says."""
    found = Answer()
    for event in server.stream("/v1/completions", body(number)):
        if event == "[DONE]":
            break
        if "error" in event:
            found.error = event["error"]
            break
        for choice in event["choices"]:
            found.text += choice["text"]
            if choice["logprobs"] is not None:
                found.tokens += choice["logprobs"]["tokens"]
            if choice["finish_reason"]:
                found.ends.append(choice["finish_reason"])
    return found


def ask_all(server, numbers):
    """All at once, each in a thread of its own; answers by number."""
    answers = {}

    def one(number):
        try:
            answers[number] = ask(server, number)
        except Exception as why:
            answers[number] = Answer(error=repr(why))

    threads = [threading.Thread(target=one, args=[number]) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


class Troublemaker(threading.Thread):
    """Kills, stops and exchanges random workers, one every `every_s`, while at least one other is up.

    Attributes:
      done: what it did, by kind.
    """

    def __init__(self, cluster, seed, every_s=1.0):
        super().__init__(daemon=True)
        self.cluster, self.rng, self.every_s = cluster, random.Random(seed), every_s
        self.done = {"kill": 0, "stop": 0, "exchange": 0}
        self.stopped = {}
        self.kinds = itertools.cycle(["kill", "stop", "exchange"])
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(self.every_s):
            self.trouble()

    def trouble(self):
        for pid in [pid for pid, until_s in self.stopped.items() if until_s < time.monotonic()]:
            self.wake(pid)
        up = {place: pid for place, pid in self.cluster.pids().items() if pid not in self.stopped}
        if len(up) < 2:
            return
        place = self.rng.choice(sorted(up))
        kind = next(self.kinds)
        self.done[kind] += 1
        if kind == "kill":
            hurt(up[place])
        elif kind == "stop":
            hurt(up[place], signal.SIGSTOP)
            self.stopped[up[place]] = time.monotonic() + self.rng.choice([0.5, 3.0, 30.0])
        else:
            assert self.cluster.post("/cluster/workers", {})[0] == 202
            assert self.cluster.post("/cluster/drain", {"worker": place})[0] == 202

    def wake(self, pid):
        del self.stopped[pid]
        with contextlib.suppress(ProcessLookupError):
            hurt(pid, signal.SIGCONT)

    def end(self):
        self.over.set()
        self.join()
        for pid in list(self.stopped):
            self.wake(pid)


def service(numbers, answers):
    """Weighted tokens by client, as every stream was served once."""
    due = dict.fromkeys(CLIENTS, 0)
    for number in numbers:
        asked = body(number)
        due[asked["user"]] += len(asked["prompt"]) + 2 * len(answers[number].tokens)
    return due
