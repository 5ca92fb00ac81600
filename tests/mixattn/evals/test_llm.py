"""Language models: the scripted stub, record and replay, and the client over real HTTP."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mixattn.evals.llm import (
    CallFailed,
    Completion,
    Divergence,
    LanguageModel,
    Likelihood,
    OpenAI,
    Piece,
    Record,
    Replay,
    RetryPolicy,
    Scripted,
    Usage,
    as_text,
    call_with_retries,
)

TALK = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "2 + 2?"}]


def ask(model, prompt="one two", **options):
    return asyncio.run(model.complete(prompt, **options))


def test_the_stub_answers_what_its_function_says():
    model = Scripted(lambda prompt: prompt.upper() + " END tail")
    assert ask(model).text == "ONE TWO END tail"
    assert ask(model, stop=["END"]).text == "ONE TWO "
    assert ask(model, max_tokens=2) == Completion("ONE TWO", Usage(2, 2), "length")


def test_the_stub_may_depend_on_the_seed():
    model = Scripted(lambda prompt, seed: f"{prompt} {seed}", wants_seed=True)
    assert ask(model, "x", seed=7).text == "x 7"


def test_a_recording_answers_the_same_questions_without_a_model(tmp_path):
    path = tmp_path / "calls.jsonl"
    model = Record(Scripted(lambda prompt: f"<{prompt}>"), path)
    for prompt in ("b", "a", "a"):
        ask(model, prompt, client="me", seed=1)
    ask(model, range(3), client="me", seed=2)
    replay = Replay(path)
    assert [ask(replay, p, client="me", seed=1).text for p in ("a", "b", "a")] == ["<a>", "<b>", "<a>"]
    assert ask(replay, [0, 1, 2], client="me", seed=2).usage == Usage(3, 2)
    with pytest.raises(Divergence, match="makes more calls than the recording holds"):
        ask(replay, "a", client="me", seed=1)


def test_a_changed_question_is_shown_beside_the_recorded_one(tmp_path):
    path = tmp_path / "calls.jsonl"
    ask(Record(Scripted(str), path), "first line\nold second", seed=3)
    with pytest.raises(Divergence) as why:
        ask(Replay(path), "first line\nnew second", seed=3)
    assert "old second" in str(why.value)
    assert "new second" in str(why.value)


def test_a_failed_call_is_not_recorded(tmp_path):
    class Fails:
        async def complete(self, prompt, **options):
            raise CallFailed("no", transient=True)

    with pytest.raises(CallFailed):
        ask(Record(Fails(), tmp_path / "calls.jsonl"))
    assert not (tmp_path / "calls.jsonl").exists()


async def pieces_of(model, messages=TALK, **options):
    return [piece async for piece in model.stream_messages(messages, **options)]


def test_a_conversation_reaches_the_stub_as_text_and_comes_back_in_pieces():
    assert as_text(TALK) == "System: be kind\n\nUser: 2 + 2?\n\nAssistant:"
    model = Scripted(lambda text: f"four, {text[-10:]}")
    assert asyncio.run(model.complete_messages(TALK)).text == "four, Assistant:"
    pieces = asyncio.run(pieces_of(model))
    assert [piece.text for piece in pieces] == ["four,", " Assistant:", ""]
    assert pieces[-1] == Piece("", "stop", Usage(8, 2))


def test_a_model_that_only_completes_streams_its_whole_answer_and_tells_no_likelihoods():
    class Plain(LanguageModel):
        async def complete(self, prompt, **options):
            return Completion(f"<{prompt[-10:]}>")

    assert asyncio.run(pieces_of(Plain())) == [Piece("<Assistant:>", "stop")]
    for model in (Plain(), Scripted(str)):
        with pytest.raises(CallFailed, match="does not tell") as why:
            asyncio.run(model.likelihoods(TALK, ["4"]))
        assert not why.value.transient


def test_conversations_streams_and_likelihoods_are_recorded_and_replayed(tmp_path):
    model = Scripted(lambda text: f"re: {text}", likelihood=lambda text, each: -float(len(each)))
    record = Record(model, tmp_path / "calls.jsonl")
    whole = asyncio.run(record.complete_messages(TALK, seed=1))
    assert len(asyncio.run(pieces_of(record))) > 2
    scores = asyncio.run(record.likelihoods(TALK, ["4", "four"]))
    assert scores == [Likelihood(-1.0, 1), Likelihood(-4.0, 1)]
    replay = Replay(tmp_path / "calls.jsonl")
    assert asyncio.run(replay.likelihoods(TALK, ["4", "four"])) == scores
    assert asyncio.run(replay.complete_messages(TALK, seed=1)) == whole
    assert asyncio.run(pieces_of(replay)) == [Piece(whole.text, whole.finish_reason, whole.usage)]
    with pytest.raises(Divergence):
        asyncio.run(replay.complete_messages(TALK, seed=1))


@pytest.mark.parametrize(("failures", "transient", "asked"), [(2, True, 3), (9, True, 4), (9, False, 1)])
def test_a_call_is_retried_while_that_may_help(failures, transient, asked):
    calls = []

    async def attempt():
        calls.append(None)
        if len(calls) <= failures:
            raise CallFailed("busy", transient=transient)
        return "done"

    policy = RetryPolicy(max_retries=3, backoff_s=0.001)
    if failures == 2:
        assert asyncio.run(call_with_retries(attempt, policy)) == ("done", 2)
    else:
        with pytest.raises(CallFailed, match=f"attempt {asked} of 4") as why:
            asyncio.run(call_with_retries(attempt, policy))
        assert why.value.transient is transient
    assert len(calls) == asked


def test_pauses_double_honour_the_server_and_end_at_a_minute():
    policy = RetryPolicy(backoff_s=0.5)
    assert [policy.pause_s(n) for n in (0, 1, 2, 20)] == [0.5, 1.0, 2.0, 60.0]
    assert policy.pause_s(0, asked_s=7.0) == 7.0
    assert policy.pause_s(0, asked_s=1e9) == 60.0
    assert 0.5 <= RetryPolicy(backoff_s=0.5, jitter=0.2).pause_s(0) <= 0.6


# ---- HTTP ---------------------------------------------------------------------------------------------
@pytest.fixture
def server():
    """A real local server that returns `.answers` in order and keeps its requests in `.asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, dict(self.headers), body))
            status, answer = server.answers.pop(0)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "3")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def over_http(url, prompt="hello", *, options=None, **config):
    async def main():
        async with OpenAI(url, "tiny", **config) as model:
            return await model.complete(prompt, **(options or {}))

    return asyncio.run(main())


TEXT = {
    "choices": [{"text": " world", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
}


def test_a_completion_crosses_http_with_every_option(server):
    server.answers = [(200, TEXT)]
    options = {"max_tokens": 9, "temperature": 0.5, "seed": 3, "priority": 7, "client": "ida", "stop": ["."]}
    done = over_http(server.url, [1, 2, 3], options=options, api_key="secret")
    assert done == Completion(" world", Usage(5, 2, 4), "length")
    path, headers, body = server.asked[0]
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        **{"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 9, "temperature": 0.5},
        **{"seed": 3, "priority": 7, "user": "ida", "stop": ["."]},
    }


def test_chat_sends_one_message(server):
    server.answers = [(200, {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})]
    assert over_http(server.url + "/", chat=True) == Completion("hi")
    path, _, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    with pytest.raises(ValueError, match="token ids"):
        over_http(server.url, [1], chat=True)


@pytest.mark.parametrize(
    ("status", "answer", "transient"),
    [
        (429, {"error": "slow down"}, True),
        (503, {}, True),
        (401, {"error": "who are you"}, False),
        (400, {"error": "no such model"}, False),
        (200, b"<html>", True),
        (200, {"choices": []}, False),
        (200, {"choices": [{"message": None}]}, False),
    ],
)
def test_what_can_be_mended_by_asking_again_is_told_apart(server, status, answer, transient):
    server.answers = [(status, answer)]
    with pytest.raises(CallFailed) as why:
        over_http(server.url)
    assert why.value.transient is transient
    assert why.value.retry_after_s == (3.0 if status == 429 else None)


def test_a_server_that_is_not_there_may_come_back():
    with pytest.raises(CallFailed) as why:
        over_http("http://127.0.0.1:9/v1")
    assert why.value.transient


def with_http(url, act):
    async def main():
        async with OpenAI(url, "tiny") as model:
            return await act(model)

    return asyncio.run(main())


def test_a_conversation_crosses_http_as_it_is(server):
    server.answers = [(200, {"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]})]
    assert with_http(server.url, lambda model: model.complete_messages(TALK, max_tokens=3)).text == "4"
    path, _, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "tiny", "messages": TALK, "max_tokens": 3, "temperature": 0.0}


def events(*objects):
    lines = [f"data: {json.dumps(each)}\n\n" for each in objects]
    return "".join([": a comment\n\n", *lines]).encode()


def delta(text, finish_reason=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]}


def test_a_stream_crosses_http_in_pieces(server):
    used = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    server.answers = [(200, events(delta("fo"), delta("ur", "stop"), used) + b"data: [DONE]\n\n")]
    assert with_http(server.url, pieces_of) == [Piece("fo"), Piece("ur"), Piece("", "stop", Usage(5, 2))]
    assert server.asked[0][2]["stream"] is True


@pytest.mark.parametrize(
    ("status", "answer", "transient"),
    [
        (503, {}, True),
        (400, {}, False),
        (200, events(delta("fo")), True),
        (200, b"data: {torn\n\n", True),
        (200, events({"error": {"message": "out of memory"}}), True),
    ],
)
def test_a_stream_that_breaks_off_is_a_failed_call(server, status, answer, transient):
    server.answers = [(status, answer)]
    with pytest.raises(CallFailed) as why:
        with_http(server.url, pieces_of)
    assert why.value.transient is transient


class ByCharacter(BaseHTTPRequestHandler):
    """A completions server whose tokens are characters; one of code c has the log-probability -c / 100."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = [*body["prompt"], "!"] if body.get("echo") else ["!"]
        values = [None, *(-ord(token) / 100 for token in tokens[1:])]
        logprobs = {"tokens": tokens, "token_logprobs": values, "text_offset": list(range(len(tokens)))}
        data = json.dumps({"choices": [{"text": "".join(tokens), "logprobs": logprobs}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def character_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), ByCharacter)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_likelihoods_count_the_tokens_of_the_continuation_only(character_server):
    found = with_http(character_server, lambda model: model.likelihoods(TALK, ["4", "ab"]))
    assert found == [Likelihood(-0.52, 1), Likelihood(pytest.approx(-0.97 - 0.98), 2)]
    assert found[1].per_token == pytest.approx(-0.975)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"text": "no logprobs"}]},
        {"choices": [{"logprobs": {"tokens": ["x"], "token_logprobs": [-1.0], "text_offset": [0]}}]},
        {"choices": [{"logprobs": {"tokens": ["x"], "token_logprobs": []}}]},
    ],
)
def test_a_server_without_echo_tells_no_likelihoods(server, answer):
    server.answers = [(200, answer)]
    with pytest.raises(CallFailed) as why:
        with_http(server.url, lambda model: model.likelihoods(TALK, ["4"]))
    assert not why.value.transient
