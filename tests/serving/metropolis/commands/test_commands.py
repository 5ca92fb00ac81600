"""The commands as a user types them: runs, help, and one sentence on a mistake."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.metropolis.town import PEOPLE, stub_model


def test_run_check_and_replay_as_a_user_would(run_module, tmp_path):
    work = f"--workdir={tmp_path}"
    first = run_module("serving.metropolis", "run", work, "--residents=4", "--steps=40", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["agent_steps"] == 160
    again = run_module("serving.metropolis", "run", work, "--residents=4", "--steps=60")
    assert again.returncode == 2
    assert "resume it or name another one" in again.stderr
    more = run_module("serving.metropolis", "run", work, "--residents=4", "--steps=60", "--resume", "--json")
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["agent_steps"] == 80
    assert "240 agent-steps" in run_module("serving.metropolis", "check", work).stdout
    assert run_module("serving.metropolis", "replay", work).returncode == 0
    assert (tmp_path / "replay.html").stat().st_size > 20_000


def test_the_town_runs_against_any_openai_compatible_server(run_module, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompts_seen.append(asked)
            answer = {"choices": [{"text": stub_model.reply(asked["prompt"], asked["seed"])}]}
            data = json.dumps(answer).encode()
            self.send_response(200 if len(prompts_seen) % 7 else 503)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    prompts_seen: list[dict] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"--url=http://127.0.0.1:{server.server_port}/v1"
    sizes = (f"--workdir={tmp_path}", "--residents=5", "--steps=120", "--llm=http", "--json")
    done = run_module("serving.metropolis", "run", url, *sizes)
    server.shutdown()
    server.server_close()
    thread.join()
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["agent_steps"] == 600
    assert figures["retries"] == len(prompts_seen) // 7
    assert {p["user"] for p in prompts_seen} <= {person.name for person in PEOPLE[:5]}
    assert all(p["prompt"].startswith("Task: ") and p["priority"] < 120 for p in prompts_seen)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fly"], "'fly' is not one of run, replay"),
        (["run", "--residents=99"], "beds for 1 to 25"),
        (["run", "--steps=0"], "at least 1"),
        (["check", "--workdir=nowhere"], "does not exist"),
        (["experiment"], "--config is missing"),
        (["simulate", "--trace=missing.jsonl"], "missing.jsonl"),
        (["simulate"], "--trace must have a value"),
        (["bench", "--agents=many"], "--agents=many is not a list"),
        (["trace", "--out=x", "--hours=3"], "Unknown command line flag 'hours'"),
        (["check", "runs/town"], "unexpected argument 'runs/town'"),
        (["experiment", "--config=configs/metropolis.py:E9"], "unknown experiment 'E9'; known: E1"),
        (["experiment", "--config=configs/metropolis.py:E7"], "this command needs MetropolisExperiment"),
        (["live", "--config=configs/metropolis.py:E1"], "this command needs LiveTownConfig"),
    ],
)
def test_mistakes_get_one_sentence(args, words, run_module, tmp_path):
    if args[0] == "run":
        args = [*args, f"--workdir={tmp_path}"]
    done = run_module("serving.metropolis", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help"], ["simulate --trace"]),
        (["run", "--help"], ["run --workdir=runs/town --steps=1440 --resume", "--timeout_s"]),
        (["experiment", "-h"], ["--config=configs/metropolis.py:E1 --workers=4", "--workers"]),
    ],
)
def test_help_shows_examples_and_flags(args, words, run_module):
    done = run_module("serving.metropolis", *args)
    assert done.returncode == 0
    assert all(word in done.stdout for word in words)


def test_a_trace_is_written_and_simulated(run_module, tmp_path):
    path = tmp_path / "day.jsonl"
    made = run_module("serving.metropolis", "trace", f"--out={path}", "--agents=6")
    assert made.returncode == 0, made.stderr
    done = run_module("serving.metropolis", "simulate", f"--trace={path}", "--replicas=2", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows["critical_s"] <= rows["oracle"]["elapsed_s"] * 1.02
    assert rows["metropolis"]["elapsed_s"] <= rows["parallel_sync"]["elapsed_s"]
