"""What goes to a worker and back is what was meant."""

import dataclasses
import json
import math
import random

import pytest

from serving.cluster import messages, reports
from serving.cluster.live_output import token_bytes
from serving.http.grammar import GrammarAsked, MakeGrammar
from serving.request import Delta, Logprob, Output, Request, RequestKeep, Sampling

SENT = {
    *("client", "prompt_ids", "sampling", "id", "cache_salt", "deadline_s"),
    *("priority", "program", "grammar", "resume_ids", "forced_ids", "keep"),
}


def sampling(rng):
    return Sampling(
        max_tokens=rng.randint(5, 99),
        min_tokens=rng.randint(0, 3),
        temperature=rng.choice([0.0, 0.7]),
        top_k=rng.choice([-1, 5]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.1]),
        frequency_penalty=rng.choice([0.0, -0.5]),
        presence_penalty=rng.choice([0.0, 0.5]),
        logit_bias=rng.choice([{}, {3: -1.5, 70: 2.0}]),
        seed=rng.choice([None, 7, -(2**40)]),
        stop=rng.choice([(), ("\n", "näh")]),
        include_stop=rng.random() < 0.5,
        stop_ids=rng.choice([(), (1, 2)]),
        ignore_eos=rng.random() < 0.5,
        logprobs=rng.choice([None, 0, 3]),
        prompt_logprobs=rng.choice([None, 2]),
    )


@pytest.mark.parametrize("seed", range(50))
def test_a_request_arrives_as_it_was_sent(seed):
    rng = random.Random(seed)
    sent = Request(
        client=rng.choice(["a", "büro/eins", "<b>"]),
        prompt_ids=[rng.randrange(1000) for _ in range(rng.randint(1, 30))],
        sampling=sampling(rng),
        id="x",
        cache_salt=rng.choice(["", "s"]),
        deadline_s=rng.choice([None, 1.5]),
        priority=rng.choice([0, -3]),
        program=rng.choice(["", "p"]),
        resume_ids=rng.choice([(), (4, 5)]),
        keep=rng.choice([None, RequestKeep(budget=0.2), RequestKeep(budget=20, scorer="tova")]),
    )
    assert {field.name for field in dataclasses.fields(sent)} == SENT, "a new field needs to be sent"
    line = messages.run_command(17, sent, token_bytes(sent.prompt_ids))
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    kind, attempt, told = json.loads(line)
    assert (kind, attempt) == ("run", 17)
    assert messages.request_of("x", told, None) == sent


def test_what_is_usual_is_not_said():
    request = Request(client="a", prompt_ids=[1], id="x")
    told = json.loads(messages.run_command(0, request, token_bytes([1])))[2]
    assert told == {"client": "a", "prompt": "AQAAAA==", "sampling": {}}


def test_a_grammar_travels_as_it_was_asked_for():
    asked = GrammarAsked("regex", "[ab]+", "guided_regex")
    request = Request(client="a", prompt_ids=[1], id="x", grammar=MakeGrammar(asked, None, 3))
    told = json.loads(messages.run_command(0, request, token_bytes([1])))[2]
    assert messages.grammar_of(told) == asked


def test_a_delta_arrives_as_it_was_sent_also_what_is_no_number():
    logprobs = (Logprob(3, -0.5, ((3, -0.5), (4, -1.25))), Logprob(5, math.nan))
    output = Output(
        id="x",
        client="a",
        output_ids=[3, 5],
        finish_reason="stop",
        prompt_tok=1,
        hit_tok=0,
        arrival_s=0.0,
        admit_s=0.0,
        first_token_s=0.0,
        finish_s=0.0,
        stop="end",
        prompt_logprobs=(Logprob(9, -math.inf),),
    )
    delta = Delta("x", "a", [3, 5], output, text="ü\n", logprobs=logprobs)
    row = json.loads(messages.line({"d": [reports.delta_row(4, 2, delta)]}))["d"][0]
    assert row[:2] == [4, 2]
    _, _, made = reports.delta_of(row)
    assert (made.ids, made.text) == (delta.ids, delta.text)
    assert made.logprobs[0] == logprobs[0]
    assert math.isnan(made.logprobs[1].logprob)
    assert made.output.finish_reason == "stop"
    assert made.output.stop == "end"
    assert made.output.prompt_logprobs == output.prompt_logprobs


def test_lines_come_whole_from_pieces_of_any_size():
    text = "".join(f"line {i}\n" for i in range(50)).encode()
    rng, splitter, found = random.Random(1), messages.LineSplitter(), []
    while text:
        size = rng.randint(1, 30)
        found += splitter.feed(text[:size])
        text = text[size:]
    assert found == [f"line {i}".encode() for i in range(50)]
