"""Structured output and tools: what comes back fits, what cannot be is refused in bounded time."""

import json
import re
import time

import pytest

from serving.http.tool_calls import read

PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["ann", "bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["rome", "oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASK = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_fits_its_schema_at_any_temperature(server, seed):
    schema = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    body = {**ASK, "response_format": schema, "temperature": 1.5, "seed": seed, "max_tokens": 900}
    choice = server.post("/v1/chat/completions", body)[1]["choices"][0]
    if choice["finish_reason"] == "stop":
        value = json.loads(choice["message"]["content"])
        assert value["name"] in ("ann", "bob")
        assert 0 <= value["age"] <= 99
    else:
        assert choice["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("field", "value", "fits"),
    [
        ("guided_regex", "(ab|cd){2}x", r"(ab|cd){2}x"),
        ("guided_choice", ["yes", "no"], r"yes|no"),
        ("guided_grammar", 'start: "a" "b"+ "c"', r"ab+c"),
        ("guided_regex", "é→🙂{2}", "é→🙂{2}"),
    ],
)
def test_the_other_kinds_of_grammar(server, field, value, fits):
    for extra in ({}, {"logprobs": 2}, {"n": 3, "stream": False}):
        answer = server.complete(**{field: value}, max_tokens=60, temperature=1.0, **extra)
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "stop"
            assert re.fullmatch(fits, choice["text"])


def test_rows_without_a_grammar_do_not_notice_one_beside_them(server):
    from concurrent.futures import ThreadPoolExecutor

    body = {"prompt": "the quick", "max_tokens": 60, "seed": 4, "ignore_eos": True}
    alone = server.complete(**body)["choices"][0]["text"]
    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(server.complete, guided_regex="[ab]{50}", max_tokens=60) for _ in range(2)]
        texts = {pool.submit(server.complete, **body).result()["choices"][0]["text"] for _ in range(2)}
        assert all(re.fullmatch("[ab]{50}", b.result()["choices"][0]["text"]) for b in beside)
    assert texts == {alone}


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "("},
        {"guided_regex": "(a{1000}){1000}"},
        {"guided_regex": ".*" * 500},
        {"guided_regex": "a" * 70_000},
        {"guided_grammar": "start: nothing"},
        {"guided_grammar": "start: start"},
        {"guided_json": "not json"},
        {"guided_json": {"type": "nope"}},
        {"guided_json": {"$ref": "http://elsewhere.example/x.json"}},
        {"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        {"guided_choice": []},
        {"guided_choice": "yes"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": "json"},
        {"guided_regex": "a", "guided_choice": ["a"]},
    ],
)
def test_a_bad_or_exploding_grammar_is_400_in_bounded_time(server, fields):
    began_s = time.monotonic()
    status, answer = server.post("/v1/completions", {"prompt": "a", **fields})
    assert status == 400, answer
    assert time.monotonic() - began_s < 5


def test_a_required_tool_is_called_with_arguments_that_fit(server):
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        body = {
            **ASK,
            "tools": [WEATHER],
            "tool_choice": choice,
            "temperature": 1.0,
            "seed": 1,
            "max_tokens": 800,
        }
        answer = server.post("/v1/chat/completions", body)[1]["choices"][0]
        if answer["finish_reason"] == "length":
            continue
        call = answer["message"]["tool_calls"][0]
        assert (answer["finish_reason"], call["type"], call["function"]["name"]) == (
            "tool_calls",
            "function",
            "weather",
        )
        assert json.loads(call["function"]["arguments"])["city"] in ("rome", "oslo")


def test_tools_that_are_none_are_refused_and_none_means_none(server):
    for bad in (
        {"tools": [{}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [WEATHER, WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "required"},
        {"functions": [{"name": "f"}]},
    ):
        status, answer = server.post("/v1/chat/completions", {**ASK, **bad})
        assert status == 400, (bad, answer)
    answer = server.post(
        "/v1/chat/completions", {**ASK, "tools": [WEATHER], "tool_choice": "none", "max_tokens": 2}
    )
    assert "tool_calls" not in answer[1]["choices"][0]["message"]


def test_calls_are_read_from_what_models_write():
    names = {"f", "g"}
    hermes = 'so\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><tool_call>{"name":"g"}'
    text, calls = read(hermes, names)
    assert (text, [c["function"]["name"] for c in calls]) == ("so", ["f", "g"])
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1}
    assert read('[TOOL_CALLS][{"name": "f", "arguments": {}}]', names)[1][0]["function"]["name"] == "f"
    assert (
        read('{"name": "f", "parameters": {"x": "y"}}', names)[1][0]["function"]["arguments"] == '{"x": "y"}'
    )
    for plain in ("hello", '{"name": "other"}', "<tool_call>nonsense</tool_call>", "[1]", "{}"):
        assert read(plain, names) == (plain, [])
