"""The openai package: every route it has for us, streams, errors, structured output, tools."""

import json
import sys
from importlib.metadata import version

import openai
from openai import OpenAI

URL, MODEL = sys.argv[1:3]
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}
USER = [{"role": "user", "content": "the quick brown fox"}]


def completions(client: OpenAI) -> None:
    models = client.models.list().data
    assert [m.id for m in models] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    both = client.completions.create(
        model=MODEL, prompt=["the quick", "naïve café"], n=2, max_tokens=5, temperature=0, seed=2**70
    )
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text
    ids = client.completions.create(
        model=MODEL, prompt=[9, 8, 7], echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    told = ids.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.token_logprobs[0] is None
    assert len(told.token_logprobs) == len(told.text_offset or ()) == 4
    assert ids.usage is not None
    assert (ids.usage.prompt_tokens, ids.usage.completion_tokens) == (3, 1)


def streams(client: OpenAI) -> None:
    fixed = {"model": MODEL, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(prompt="the quick", **fixed)
    chunks = list(
        client.completions.create(
            prompt="the quick", stream=True, stream_options={"include_usage": True}, **fixed
        )
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]


def chats(client: OpenAI) -> None:
    fixed = {"model": MODEL, "messages": USER, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(logprobs=True, top_logprobs=2, **fixed)
    assert whole.choices[0].message.role == "assistant"
    tokens = whole.choices[0].logprobs.content
    assert len(tokens) == whole.usage.completion_tokens
    raw = b"".join(bytes(t.bytes or []) for t in tokens)
    if whole.choices[0].finish_reason == "length":
        assert raw.decode("utf-8", "replace").startswith(whole.choices[0].message.content.rstrip("\ufffd"))
    chunks = list(client.chat.completions.create(stream=True, **fixed))
    assert chunks[0].choices[0].delta.role == "assistant"
    with client.chat.completions.stream(**fixed) as stream:  # the package's own accumulator
        for _ in stream:
            pass
        final = stream.current_completion_snapshot  # get_final_completion refuses what ran into its length
    assert final.choices[0].message.content == whole.choices[0].message.content
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "the quick "}, {"type": "text", "text": "brown fox"}],
        }
    ]
    joined = client.chat.completions.create(**{**fixed, "messages": parts})
    assert joined.choices[0].message.content == whole.choices[0].message.content


def structured(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    made = client.chat.completions.create(
        model=MODEL, messages=USER, response_format=form, max_tokens=512, temperature=1.0, seed=1
    )
    assert isinstance(json.loads(made.choices[0].message.content)["sure"], bool)
    tool = {"type": "function", "function": {"name": "decide", "parameters": SCHEMA}}
    called = client.chat.completions.create(
        model=MODEL,
        messages=USER,
        tools=[tool],
        tool_choice="required",
        max_tokens=512,
        temperature=1.0,
        seed=1,
    )
    [call] = called.choices[0].message.tool_calls
    assert call.function.name == "decide"
    assert isinstance(json.loads(call.function.arguments)["sure"], bool)
    assert called.choices[0].finish_reason == "tool_calls"


def errors(client: OpenAI) -> None:
    for fields, kind, param in (
        ({"model": "no-such-model"}, openai.NotFoundError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"prompt": "\ud800"}, openai.BadRequestError, None),
        ({"suffix": "x"}, openai.BadRequestError, "suffix"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
    ):
        try:
            client.completions.create(**{"model": MODEL, "prompt": "a", **fields})
        except kind as why:
            assert why.code
            assert param is None or why.param == param, (why.param, param)
        except UnicodeEncodeError:
            assert fields["prompt"] == "\ud800"  # the package itself refuses half a character
        else:
            raise AssertionError(f"{fields} was answered")


def main() -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    for check in (completions, streams, chats, structured, errors):
        check(client)
    print(
        f"openai {version('openai')}: ok, models, completions (texts, ids, n, echo, logprobs), chat, both "
        "streams and the accumulator, usage, json_schema, tools, errors by class, code and param"
    )


if __name__ == "__main__":
    main()
