"""Eviction through the HTTP server: budgets by request, and refusals with the two facts that disagree."""

import pytest

from tests.serving.http.tiny_server import ServerProcess

PROMPT = "the quick brown fox jumps over the lazy dog and then sleeps"


@pytest.fixture(scope="module")
def evicting():
    flags = ("--engine.keep.slab_tok=16", "--engine.keep.full_decode=false", "--engine.keep.recent_tok=4")
    running = ServerProcess(*flags)
    try:
        yield running.ready()
    finally:
        running.close()


def test_requests_name_smaller_budgets_and_an_answer_does_not_depend_on_its_neighbours(evicting):
    alone = evicting.complete(prompt=PROMPT, max_tokens=24, temperature=0, keep={"budget": 8})
    again = evicting.complete(prompt=PROMPT, max_tokens=24, temperature=0, keep={"budget": 8}, n=2)
    assert again["choices"][0]["text"] == alone["choices"][0]["text"] == again["choices"][1]["text"]
    assert alone["usage"]["completion_tokens"] == 24


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ({"scorer": "tova"}, "the request asks for the scorer 'tova'; compiled in are h2o"),
        ({"budget": 20}, "asks for 20 keys a layer, a slab holds 16"),
        ({"everything": True}, "a slab holds 16; keep.full_decode is off"),
        ({"budget": 0}, "keep.budget is 0; it must be a number of keys from 1 up"),
        ({"heavy": 3}, "keep has the field 'heavy'; known are scorer, budget, everything"),
        ("half", "keep must be an object"),
    ],
)
def test_refusals(evicting, keep, sentence):
    status, answer = evicting.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 24, "keep": keep})
    assert status == 400
    assert sentence in answer["error"]["message"]


def test_a_server_that_does_not_evict_refuses_a_budget(server):
    status, answer = server.post("/v1/completions", {"prompt": PROMPT, "keep": {"budget": 8}})
    assert status == 400
    assert "config.keep.slab_tok is 0" in answer["error"]["message"]
