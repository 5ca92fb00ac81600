"""Small synthetic files in every trace format, to try the command on. All numbers are made up."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path


def azure(rng: random.Random) -> Iterator[str]:
    yield "TIMESTAMP,ContextTokens,GeneratedTokens"
    at_s = 0.0
    for _ in range(240):
        at_s += rng.expovariate(2.0)
        minute, second = divmod(at_s, 60)
        stamp = f"2023-11-16 18:{15 + int(minute):02}:{second:010.7f}"
        yield f"{stamp},{rng.randint(40, 1600)},{rng.randint(8, 240)}"


def burstgpt(rng: random.Random) -> Iterator[str]:
    yield "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    at_s = 5
    for i in range(240):
        at_s += int(rng.expovariate(1.5))
        prompt, output = rng.randint(20, 900), 0 if i % 40 == 39 else rng.randint(5, 300)
        model = "GPT-4" if rng.random() < 0.2 else "ChatGPT"
        yield f"{at_s},{model},{prompt},{output},{prompt + output},Conversation log"


def mooncake(rng: random.Random) -> Iterator[str]:
    at_ms, fresh = 0, 100
    for _ in range(160):
        at_ms += int(rng.expovariate(1 / 700))
        shared = rng.choice([[1, 2], [3, 4, 5], []])
        prompt = 512 * len(shared) + rng.randint(30, 1500)
        own = -(-prompt // 512) - len(shared)
        ids, fresh = [*shared, *range(fresh, fresh + own)], fresh + own
        row = {
            "timestamp": at_ms,
            "input_length": prompt,
            "output_length": rng.randint(5, 120),
            "hash_ids": ids,
        }
        yield json.dumps(row)


def sharegpt(rng: random.Random) -> Iterator[str]:
    def text(words: int) -> str:
        return " ".join("word" for _ in range(words))

    conversations = [
        {
            "id": f"made-up-{i}",
            "conversations": [
                {"from": "gpt" if turn % 2 else "human", "value": text(rng.randint(5, 160))}
                for turn in range(2 * rng.randint(1, 4))
            ],
        }
        for i in range(60)
    ]
    yield json.dumps(conversations, indent=1)


def own(rng: random.Random) -> Iterator[str]:
    at_s = 0.0
    for i in range(60):
        at_s += rng.expovariate(1.0)
        row = {"client": "abc"[i % 3], "weight": 1 + (i % 3 == 0), "output_len": rng.randint(10, 120)}
        extra = {"max_output": 160} | ({"cancel_s": 6.0} if i % 9 == 8 else {})
        extra |= {"deadline_s": 30.0} if i % 5 == 4 else {}
        prompt = {"prompt_len": 300 + rng.randint(5, 200), "prefix": [["system", 300]]}
        yield json.dumps({"id": f"single{i}", "arrival_s": round(at_s, 3), **row, **prompt, **extra})
        if i % 6 == 0:
            session = {"session": f"s{i}", "client": "chat", "salt": "chat"}
            for turn in range(3):
                when = {"think_s": 4.0} if turn else {"arrival_s": round(at_s, 3)}
                lengths = {"prompt_len": rng.randint(20, 90), "output_len": rng.randint(20, 80)}
                yield json.dumps({"id": f"s{i}.{turn}", **session, **when, **lengths})
        if i % 10 == 0:
            agent = {"client": f"agent{i}", "program": "town"}
            for step in range(4):
                follows = {"after": f"p{i}.{step - 1}"} if step else {"arrival_s": round(at_s, 3)}
                lengths = {"prompt_len": 240, "output_len": 30, "priority": step}
                yield json.dumps({"id": f"p{i}.{step}", **agent, **follows, **lengths})


FILES: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "own.jsonl": own,
    "azure.csv": azure,
    "burstgpt.csv": burstgpt,
    "mooncake.jsonl": mooncake,
    "sharegpt.json": sharegpt,
}


def lines(name: str) -> Iterator[str]:
    """The lines of the example of that name."""
    return FILES[name](random.Random(name))


def format_of(name: str) -> str:
    """The format of the example of that name."""
    return Path(name).stem
