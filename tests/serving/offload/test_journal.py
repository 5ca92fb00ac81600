"""The file of answers: another run's is refused, its order is the file's of requests."""

import json

import pytest

from serving import Request, Sampling
from serving.offline import fingerprints
from serving.offload import journal

REQUESTS = [
    Request(id=f"q{i}", client="a", prompt_ids=[1, 2, 3 + i], sampling=Sampling(max_tokens=4))
    for i in range(3)
]


def answered(path, *requests, model="one"):
    lines = [
        {"id": r.id, "index": 0, "fingerprint": fingerprints.of_request(r), "model": model} for r in requests
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_answers_of_the_same_model_to_the_same_questions_are_taken(tmp_path):
    journal.refuse_others(answered(tmp_path / "a.jsonl", *REQUESTS), REQUESTS, "one")
    journal.refuse_others(tmp_path / "none.jsonl", REQUESTS, "one")


def test_answers_of_another_model_are_refused(tmp_path):
    path = answered(tmp_path / "a.jsonl", *REQUESTS, model="other")
    with pytest.raises(ValueError, match="line 1 is of model other, this is one"):
        journal.refuse_others(path, REQUESTS, "one")


def test_answers_with_other_sampling_are_refused(tmp_path):
    path = answered(tmp_path / "a.jsonl", *REQUESTS)
    warm = [
        Request(id="q2", client="a", prompt_ids=[1, 2, 5], sampling=Sampling(max_tokens=4, temperature=0.7))
    ]
    with pytest.raises(
        ValueError, match=r"line 3 answers 'q2' with prompt and sampling \w+, now they are \w+"
    ):
        journal.refuse_others(path, warm, "one")


def test_a_torn_line_is_no_answer(tmp_path):
    path = answered(tmp_path / "a.jsonl", *REQUESTS)
    path.write_text(path.read_text()[:-20])
    journal.refuse_others(path, REQUESTS, "one")


def test_answers_are_put_into_the_order_of_the_requests(tmp_path):
    path = answered(tmp_path / "a.jsonl", *reversed(REQUESTS))
    journal.put_in_order(path, [r.id for r in REQUESTS])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["q0", "q1", "q2"]
