"""At random: a line of a request file that is damaged is read as it says or is an error of its own number."""

import json
import random

import pytest

from serving.offline import requests_file
from tests.mixattn.hf import mutations

GOOD = [
    {"prompt": "abc", "max_tokens": 8, "metadata": {"row": 1}},
    {"id": "a", "client": "x", "prompt_ids": [1, 2, 3], "temperature": 0.8, "seed": 7, "n": 2, "stop": ["x"]},
    {"messages": [{"role": "user", "content": "Hi"}], "top_k": 0, "top_p": 0, "logit_bias": {"3": 1.5}},
    {"custom_id": "c", "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}},
    {"prompt_ids": [4], "priority": 3, "deadline_s": 2.5, "logprobs": 2, "min_tokens": 1, "stop_ids": [1]},
]


def read(path):
    return requests_file.read_lines(
        path, lambda text: list(text.encode()) or [0], lambda messages: [len(messages)], {"temperature": 0.5}
    )


def check(tmp_path, seed: int) -> str:
    rng = random.Random(seed)
    path = tmp_path / "asks.jsonl"
    lines = [json.dumps(fields).encode() for fields in GOOD]
    path.write_bytes(b"\n".join(lines))
    want = read(path)
    assert not [line.error for line in want if line.error]
    at = rng.randrange(len(lines))
    way = rng.choice((mutations.flip_bytes, mutations.cut, mutations.splice, *[mutations.respell] * 5))
    spoiled = way(rng, lines[at]).replace(b"\n", b"")
    path.write_bytes(b"\n".join([*lines[:at], spoiled, *lines[at + 1 :]]))
    try:
        got = read(path)
    except ValueError as why:
        return "refused" if "is not UTF-8" in str(why) else pytest.fail(f"case {seed}: {why}")
    mine = [line for line in got if line.number == at + 1]
    others = [line for line in got if line.number != at + 1]
    # An id that the damage made another line's is an error of whichever comes later.
    clash = [line for line in others if "twice" in line.error]
    assert [line for line in others if line not in clash] == [
        line for line in want if line.number != at + 1 and line.number not in {c.number for c in clash}
    ], seed
    for line in mine:
        assert "\n" not in line.error, seed
        if line.error:
            assert line.request is None
            return "refused"
        if line.request == want[at].request:
            return "same"
        fields = json.loads(spoiled)
        assert fields != GOOD[at], f"case {seed}: another request from the same words"
        asked = fields.get("body") or fields
        for name, read_back in (("max_tokens", "max_tokens"), ("seed", "seed"), ("n", "n")):
            if asked.get(name) is not None:
                assert getattr(line.request.sampling, read_back) == asked[name], seed
        if asked.get("prompt_ids") is not None:
            assert list(line.request.prompt_ids) == asked["prompt_ids"], seed
        return "says so"
    return "empty"


def test_a_damaged_request_line_is_read_as_it_says_or_is_an_error_of_its_number(tmp_path):
    came = [check(tmp_path, seed) for seed in range(200)]
    assert {"refused", "same", "says so"} <= set(came)


@pytest.mark.long
def test_two_thousand_damaged_request_lines(tmp_path):
    came = [check(tmp_path, seed) for seed in range(10_000, 12_000)]
    print({word: came.count(word) for word in sorted(set(came))})
