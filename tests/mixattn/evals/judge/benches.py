"""A small bench in FastChat's layout, and a real local server that replies as a function says."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mixattn.evals.llm import as_text

CATEGORIES = ("writing", "math", "coding", "stem")


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer_row(question_id, model, turns):
    choices = [{"index": 0, "turns": list(turns)}]
    return {
        "question_id": question_id,
        "answer_id": "x",
        "model_id": model,
        "choices": choices,
        "tstamp": 1.0,
    }


def make_bench(root: Path, models=("ant", "bee", "cat"), questions: int = 4) -> Path:
    """Questions of two turns; a model's answers have as many distinct words as its place, times three."""
    rows = [
        {
            "question_id": 81 + n,
            "category": CATEGORIES[n % len(CATEGORIES)],
            "turns": [f"Q{n}a {{curly}}?", f"Q{n}b?"],
        }
        for n in range(questions)
    ]
    write_rows(root / "question.jsonl", rows)
    for place, model in enumerate(models, 1):
        answers = []
        for n in range(questions):
            words = " ".join(f"w{n}x{i}" for i in range(3 * place))
            answers.append(answer_row(81 + n, model, [f"1. {words}\n2. more {words}", f"second {words}"]))
        write_rows(root / "model_answer" / f"{model}.jsonl", answers)
    graded = [row["question_id"] for row in rows if row["category"] in ("math", "coding")]
    references = [answer_row(id, "gold", [f"ref {id} one", f"ref {id} two"]) for id in graded]
    write_rows(root / "reference_answer" / "gold.jsonl", references)
    return root


class ChatServer:
    """An OpenAI-compatible server on the loopback; a context manager.

    Args:
      reply: the text of an answer to the conversation as text.
      failures: statuses to answer first, in order; -1 closes the connection.
      pause_s: before every answer.
    """

    def __init__(self, reply, failures=(), pause_s=0.0):
        self.reply, self.failures, self.pause_s = reply, list(failures), pause_s
        self.asked = []
        self._lock = threading.Lock()

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.asked.append((self.path, body))
                    failure = outer.failures.pop(0) if outer.failures else 200
                time.sleep(outer.pause_s)
                if failure == -1:
                    self.close_connection = True
                    return
                usage = {"prompt_tokens": 100, "completion_tokens": 10}
                message = {"role": "assistant", "content": outer.reply(as_text(body["messages"]))}
                choices = [{"message": message, "finish_reason": "stop"}]
                data = json.dumps({"choices": choices, "usage": usage} if failure == 200 else {}).encode()
                self.send_response(failure)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
