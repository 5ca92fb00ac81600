"""Language models: the scripted stub, record and replay, and the client over real HTTP."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mixattn.evals.llm import CallFailed, Completion, Divergence, OpenAI, Record, Replay, Scripted, Usage


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


def test_a_server_that_is_not_there_may_come_back():
    with pytest.raises(CallFailed) as why:
        over_http("http://127.0.0.1:9/v1")
    assert why.value.transient
