"""Messages and OpenAI batch lines become the requests that a plain line would."""

import pytest

from serving.offline import requests_file
from serving.offline.requests_file import CHAT_TOK, parse

HELLO = [{"role": "user", "content": "Hello"}]


def chat(messages) -> list[int]:
    return [len(messages), *(len(m["content"]) for m in messages)]


def parsed(fields, **defaults):
    return parse(fields, "7", lambda text: [len(text)], chat, defaults)


def test_messages_go_through_the_template():
    request = parsed({"messages": HELLO})
    assert request.prompt_ids == (1, 5)
    assert request.sampling.max_tokens == CHAT_TOK
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert parsed({"messages": parts}).prompt_ids == (1, 5)


def test_a_lines_own_sampling_goes_before_the_models():
    assert parsed({"prompt": "x"}, temperature=0.5).sampling.temperature == 0.5
    assert parsed({"prompt": "x", "temperature": 0.1}, temperature=0.5).sampling.temperature == 0.1


def test_a_batch_line_is_the_same_request():
    body = {
        "model": "any", "messages": HELLO, "max_completion_tokens": 9, "user": "ann", "top_p": 0.5,
        "stop": "x", "logprobs": True, "top_logprobs": 2, "stream": False, "seed": None,
    }  # fmt: skip
    line = {"custom_id": "b1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    plain = {"id": "b1", "client": "ann", "messages": HELLO, "max_tokens": 9, "top_p": 0.5, "stop": "x"}
    assert parsed(line) == parsed(plain | {"logprobs": 2})
    completion = {"custom_id": "b2", "url": "/v1/completions", "body": {"prompt": "abc", "logprobs": 1}}
    assert parsed(completion) == parsed({"id": "b2", "prompt": "abc", "logprobs": 1})


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"body": {"messages": HELLO}}, "batch line without custom_id"),
        ({"custom_id": "a", "body": 3}, "body must be an object, not a int"),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": {}}, "asks for POST '/v1/embeddings'"),
        ({"custom_id": "a", "body": {"messages": HELLO, "tools": []}}, "not served: tools"),
        ({"custom_id": "a", "body": {"messages": HELLO, "stream": True}}, "answers are whole lines"),
        ({"custom_id": "a", "body": {"messages": HELLO}, "x": 1}, "unknown fields x"),
        ({"custom_id": 3.5, "body": {"messages": HELLO}}, "id must be a text"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user"}]}, "message 1 must have text"),
        ({"messages": [{"content": "x"}]}, "message 1 must be an object with a role"),
        ({"messages": HELLO, "prompt": "x"}, "either prompt, prompt_ids or messages"),
    ],
)
def test_bad_lines_are_one_sentence(line, sentence):
    with pytest.raises(ValueError, match=sentence):
        parsed(line)


def test_messages_without_a_tokenizer_are_refused():
    with pytest.raises(ValueError, match="no tokenizer"):
        requests_file.parse({"messages": HELLO}, "1", None)
