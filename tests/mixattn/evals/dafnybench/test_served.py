"""A model behind an OpenAI-compatible server: what it is sent, and what happens when it goes away."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mixattn.evals.dafny.scripted import ScriptedVerifier
from mixattn.evals.dafnybench import models, runner
from mixattn.evals.dafnybench.tasks import own
from mixattn.evals.llm import CallFailed

TASKS = own()[:2]


@pytest.fixture
def server():
    """Answers with the author's program at the second try of each task, and refuses after 5 calls."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            refused = len(asked) > 5
            task = next(t for t in TASKS if t.stripped in body["messages"][1]["content"])
            text = f"```dafny\n{task.original}```" if len(body["messages"]) > 2 else "I do not know."
            answer = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": {}}
            payload = json.dumps({"error": {"message": "no"}} if refused else answer).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *words):
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}/v1", asked
        http.shutdown()


def verifier():
    have = {t.original.strip() for t in TASKS}
    return ScriptedVerifier(lambda program: "verified" if program.strip() in have else "failed")


def test_it_is_sent_the_conversation_and_its_second_answer_counts(server, tmp_path):
    url, asked = server
    journal = runner.Journal(tmp_path, {})
    model = models.served(url, "name", max_tokens=99, temperature=0.5)
    list(runner.run(TASKS, model, verifier(), journal, attempts=4))
    assert {name: len(past) for name, past in journal.attempts.items()} == {t.name: 3 for t in TASKS}
    assert all(past[-1].accepted for past in journal.attempts.values())
    assert {(b["model"], b["max_tokens"], b["temperature"]) for b in asked} == {("name", 99, 0.5)}
    assert asked[0]["messages"][0]["role"] == "system"


def test_what_was_done_before_it_refused_is_kept(server, tmp_path):
    url, asked = server
    asked += [{}] * 3
    journal = runner.Journal(tmp_path, {})
    with pytest.raises(CallFailed):
        list(runner.run(TASKS, models.served(url, "name"), verifier(), journal, attempts=4, parallel=1))
    kept = runner.load_attempts(tmp_path)
    assert kept[TASKS[0].name][-1].accepted
    assert len(kept[TASKS[1].name]) == 1
