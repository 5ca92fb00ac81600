"""Fields and shapes of both protocols, beside the engine's own answers where there are some."""

import itertools
import math

import numpy as np
import pytest

from mixattn import hf
from tests.serving.http.tiny_server import CHAT, checkpoint, tokenizer
from tests.serving.tiny import _forward

ODD = "naïve café → 日本語 🙂 <end> x"


@pytest.fixture(scope="module")
def model():
    return hf.load(checkpoint())[0]


@pytest.fixture(scope="module")
def words():
    return tokenizer()


def log_p(net, ids):
    """log_p_TV of a whole sequence, by the model itself."""
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(ids)] = ids
    logits = np.asarray(_forward(net)(padded), np.float64)[0, : len(ids)]
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def test_the_four_shapes_of_a_prompt(server, words):
    text = "the quick"
    ids = words.encode(text).ids
    answers = [server.complete(prompt=p, temperature=0) for p in (text, [text], ids, [ids])]
    assert len({a["choices"][0]["text"] for a in answers}) == 1
    assert all(a["usage"]["prompt_tokens"] == len(ids) for a in answers)


def test_n_times_prompts_are_numbered_by_prompt_and_each_prompt_counts_once(server, words):
    prompts = ["def f", "the lazy dog", "a"]
    answer = server.complete(prompt=prompts, n=2, max_tokens=3, temperature=1.0, seed=5, ignore_eos=True)
    assert [c["index"] for c in answer["choices"]] == list(range(6))
    sizes = [len(words.encode(p).ids) for p in prompts]
    assert answer["usage"]["prompt_tokens"] == sum(sizes)
    assert answer["usage"]["completion_tokens"] == 18
    alone = server.complete(prompt=prompts[1], max_tokens=3, temperature=1.0, seed=5, ignore_eos=True)
    assert alone["choices"][0]["text"] == answer["choices"][2]["text"]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_whole_answer(server, n):
    body = {"prompt": ["the quick", ODD], "n": n, "max_tokens": 20, "seed": 3, "stop": ["q", "zz"]}
    whole = server.complete(**body)
    events = list(server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}}))
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        **whole["usage"],
        "prompt_tokens_details": events[-2]["usage"]["prompt_tokens_details"],
    }
    assert all(e["usage"] is None for e in events[:-2])
    texts, reasons = [""] * 2 * n, [[] for _ in range(2 * n)]
    for event in events[:-2]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert texts == [c["text"] for c in whole["choices"]]
    assert reasons == [[c["finish_reason"]] for c in whole["choices"]]


def test_a_chat_stream_begins_with_the_role_and_ends_with_an_empty_delta(server):
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 4}
    whole = server.post("/v1/chat/completions", {**body, "seed": 1})[1]
    events = list(server.stream("/v1/chat/completions", {**body, "seed": 1}))
    deltas = [e["choices"][0]["delta"] for e in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert "".join(d.get("content", "") for d in deltas) == whole["choices"][0]["message"]["content"]
    assert "usage" not in events[0]
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]].count("length") == 1


def test_echoed_log_probabilities_are_those_of_the_model(server, model, words):
    for prompt in ("the quick brown fox", ODD):
        ids = words.encode(prompt).ids
        want = log_p(model, ids)
        body = {"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 3, "temperature": 0}
        choice = server.complete(**body)["choices"][0]
        told = choice["logprobs"]
        assert told["token_logprobs"][0] is None
        assert told["top_logprobs"][0] is None
        assert len(told["tokens"]) == len(ids) + 1
        for i in range(1, len(ids)):
            assert told["token_logprobs"][i] == pytest.approx(want[i - 1, ids[i]], abs=1e-4)
            best = max(told["top_logprobs"][i].values())
            assert best == pytest.approx(want[i - 1].max(), abs=1e-4)
            assert (told["token_logprobs"][i] == best) == (ids[i] == want[i - 1].argmax())
        ids_again = server.complete(**{**body, "prompt": ids})["choices"][0]["logprobs"]
        assert ids_again["token_logprobs"] == told["token_logprobs"]


def test_offsets_point_at_each_tokens_characters(server, words):
    told = server.complete(prompt=ODD, max_tokens=1, echo=True, logprobs=0)["choices"][0]["logprobs"]
    offsets = told["text_offset"]
    assert all(a <= b for a, b in itertools.pairwise(offsets))
    for token, at in zip(told["tokens"][:-1], offsets):
        if not token.startswith("bytes:"):
            assert ODD[at : at + len(token)] == token
    assert offsets[-1] == len(ODD)


def test_a_chats_log_probabilities_carry_the_tokens_own_bytes(server, words):
    body = {"messages": [{"role": "user", "content": ODD}], "max_tokens": 12, "logprobs": True}
    answer = server.post("/v1/chat/completions", {**body, "top_logprobs": 4, "seed": 2, "ignore_eos": True})[
        1
    ]
    told = answer["choices"][0]["logprobs"]["content"]
    assert len(told) == 12
    raw = b"".join(bytes(t["bytes"]) for t in told if t["token"] != "<end>")
    assert raw.decode("utf-8", "replace") == answer["choices"][0]["message"]["content"]
    assert all(len(t["top_logprobs"]) == 4 for t in told)
    assert all(math.isfinite(t["logprob"]) for t in told)


def test_priorities_are_smaller_first_as_clients_expect(server):
    """The engine's are the other way round; only the border converts."""
    from serving.http import wire
    from serving.http.body import Fields
    from serving.http.settings import HttpLimits

    call = wire.completion(Fields({"prompt": "a", "priority": -3}), HttpLimits())
    assert call.priority == 3
    server.complete(priority=5)


def test_tokenise_and_back(server, words):
    status, answer = server.post("/tokenize", {"prompt": ODD, "add_special_tokens": False})
    assert status == 200
    assert answer["tokens"] == words.encode(ODD).ids
    assert answer["count"] == len(answer["tokens"])
    assert server.post("/detokenize", {"tokens": answer["tokens"]})[1]["prompt"] == ODD
    assert server.get("/tokenizer_info")[1]["eos_token"] == "<end>"
    chat = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})[1]
    assert words.decode(chat["tokens"]) == "<user>hi<assistant>"
    assert server.get("/tokenizer_info")[1]["chat_template"] == CHAT


def test_generate_takes_and_gives_ids(server, words):
    ids = words.encode("the quick").ids
    status, one = server.post(
        "/generate", {"input_ids": ids, "sampling_params": {"max_new_tokens": 5, "temperature": 0}}
    )
    assert status == 200
    assert len(one["output_ids"]) == 5
    assert (
        words.decode(one["output_ids"]) == server.complete(max_tokens=5, temperature=0)["choices"][0]["text"]
    )
    many = server.post("/generate", {"input_ids": [ids, ids[:1]], "sampling_params": {"n": 2}})[1]
    assert len(many) == 4


def test_a_prompt_that_leaves_no_room_is_400_by_name(server):
    status, answer = server.post("/v1/completions", {"prompt": [1] * 1020, "max_tokens": 16})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    answer = server.complete(prompt=[1] * 1023, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == 1023


def test_an_image_or_audio_is_400_and_never_silence(server):
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    status, answer = server.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0]")
    body = {"messages": [{"role": "user", "content": "a"}], "modalities": ["audio"]}
    assert server.post("/v1/chat/completions", body)[0] == 400


def test_a_known_prefix_is_reused_only_within_a_salt(server):
    server.post("/flush_cache")
    prompt = list(range(1, 65)) * 2
    first = server.complete(prompt=prompt, cache_salt="a")["usage"]["prompt_tokens_details"]["cached_tokens"]
    again = server.complete(prompt=prompt, cache_salt="a")["usage"]["prompt_tokens_details"]["cached_tokens"]
    other = server.complete(prompt=prompt, cache_salt="b")["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert (first, other) == (0, 0)
    assert again > 64
