"""`judge answer` and `judge run` as a user starts them: real processes against a real local server."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mixattn.evals.judge.scripted import ScriptedJudge
from tests import forked
from tests.mixattn.evals.judge.benches import ChatServer, make_bench, read_rows

ROOT = Path(__file__).resolve().parents[4]
FAST = ("--backoff_s=0.01", "--parallel=2")


@pytest.fixture
def bench(tmp_path):
    return make_bench(tmp_path / "bench")


@pytest.fixture
def judge(run_module, bench):
    def run(*args, command="run", **options):
        return run_module("mixattn.evals", "judge", command, f"--bench={bench}", *FAST, *args, **options)

    return run


def figures(done):
    """The one JSON object on stdout."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def keys(rows):
    return sorted(
        (
            row["question_id"],
            row.get("model") or f"{row['model_1']} {row['model_2']}",
            row["judge"][1],
            row["turn"],
        )
        for row in rows
    )


def verdicts(rows):
    drop = {"tstamp"}
    return sorted(json.dumps({k: v for k, v in row.items() if k not in drop}) for row in rows)


def test_answers_are_asked_turn_by_turn_at_the_categorys_temperature(judge, bench):
    with ChatServer(lambda text: f"re {text.count('User:')}") as server:
        done = figures(judge("--model=new/one", f"--url={server.url}", "--json", command="answer"))
        assert (done["answered"], done["calls"], done["prompt_tok"], done["complete"]) == (4, 8, 800, True)
        again = figures(judge("--model=new/one", f"--url={server.url}", "--json", command="answer"))
        assert (again["answered"], again["reused"], again["calls"]) == (0, 4, 0)
    rows = read_rows(bench / "model_answer" / "new--one.jsonl")
    assert [row["question_id"] for row in rows] == [81, 82, 83, 84]
    assert rows[0]["choices"] == [{"index": 0, "turns": ["re 1", "re 2"]}]
    assert rows[0]["model_id"] == "new/one"
    bodies = [body for path, body in server.asked if path == "/v1/chat/completions"]
    assert sorted({(b["messages"][0]["content"][:2], b["temperature"]) for b in bodies}) == [
        *[("Q0", 0.7), ("Q1", 0.0), ("Q2", 0.0), ("Q3", 0.1)]
    ]
    second = next(
        body for body in bodies if len(body["messages"]) == 3 and "Q0" in body["messages"][0]["content"]
    )
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("mode", ["single", "pairwise_all"])
def test_a_run_makes_every_judgment_once_in_fastchats_form(judge, bench, mode):
    with ChatServer(ScriptedJudge().reply) as server:
        done = figures(judge(f"--mode={mode}", "--judge=j", f"--url={server.url}", "--json"))
        assert done["complete"]
        assert done["judged"] == done["matches"] == 24
        assert done["calls"] == len(server.asked) == (24 if mode == "single" else 48)
        asked = len(server.asked)
        again = figures(judge(f"--mode={mode}", "--judge=j", f"--url={server.url}", "--json"))
        assert (again["judged"], again["reused"], again["calls"], len(server.asked)) == (0, 24, 0, asked)
    rows = read_rows(Path(done["file"]))
    assert len(set(keys(rows))) == 24
    templates = {(row["judge"][1], row["turn"]) for row in rows}
    kind = "single" if mode == "single" else "pair"
    plain = "single-v1" if mode == "single" else "pair-v2"
    assert templates == {
        *[(plain, 1), (f"{plain}-multi-turn", 2)],
        *[(f"{kind}-math-v1", 1), (f"{kind}-math-v1-multi-turn", 2)],
    }
    graded = [row for row in rows if row["question_id"] == 82]
    for row in graded:
        prompt = row.get("user_prompt") or row["g1_user_prompt"]
        assert "ref 82 one" in prompt
        assert ("ref 82 two" in prompt) == (row["turn"] == 2)
    if mode == "single":
        assert set(rows[0]) >= {
            "question_id",
            "model",
            "judge",
            "user_prompt",
            "judgment",
            "score",
            "turn",
            "tstamp",
        }
    else:
        best = [row for row in rows if "cat" in (row["model_1"], row["model_2"])]
        assert all(row["g1_winner"] == row["g2_winner"] == "model_2" for row in best)
        row = rows[0]
        assert row["g1_user_prompt"] != row["g2_user_prompt"]
        assert row["g2_user_prompt"].index("answer_a") < row["g2_user_prompt"].index("answer_b")


def test_the_baseline_meets_every_other_model_and_pairs_judged_before_are_reused(judge, bench):
    url = "--url=scripted:fair"
    first = figures(judge("--mode=pairwise_baseline", "--baseline=bee", "--judge=j", url, "--json"))
    assert first["judged"] == 2 * 8
    rows = read_rows(Path(first["file"]))
    assert {(row["model_1"], row["model_2"]) for row in rows} == {("ant", "bee"), ("cat", "bee")}
    everything = figures(judge("--mode=pairwise_all", "--judge=j", url, "--json"))
    assert (everything["reused"], everything["judged"]) == (16, 8)


@pytest.mark.parametrize("script", ["always_first", "always_second"])
def test_a_judge_that_looks_at_the_place_only_yields_nothing_but_ties(judge, run_module, script):
    done = figures(judge("--mode=pairwise_all", f"--judge={script}", f"--url=scripted:{script}", "--json"))
    shown = run_module(
        "mixattn.evals", "judge", "show", "--mode=pairwise_all", f"--judgments={done['file']}", "--json"
    )
    table = figures(shown)
    assert table["errors"] == 0
    for each in table["models"].values():
        assert (each["win"], each["loss"], each["tie"]) == (0, 0, 16)
        assert each["win_rate_adjusted"] == 0.5


def test_replies_without_a_verdict_are_kept_counted_and_not_asked_again(judge, run_module):
    done = figures(judge("--mode=single", "--judge=s", "--url=scripted:silent", "--json"))
    assert (done["judged"], done["errors"]) == (24, 24)
    again = figures(judge("--mode=single", "--judge=s", "--url=scripted:silent", "--json"))
    assert (again["calls"], again["errors"]) == (0, 24)
    shown = run_module("mixattn.evals", "judge", "show", f"--judgments={done['file']}", "--json")
    assert figures(shown) == {
        **{"turn_1": {}, "turn_2": {}, "average": {}},
        "unparsed": {"ant": 8, "bee": 8, "cat": 8},
    }
    pairs = figures(judge("--mode=pairwise_all", "--judge=s", "--url=scripted:silent", "--json"))
    assert pairs["errors"] == 24
    assert {row["g1_winner"] for row in read_rows(Path(pairs["file"]))} == {"error"}


def test_passing_failures_are_retried(judge):
    failures = [429, 500, 503, 408, 409, -1, 502]
    with ChatServer(ScriptedJudge().reply, failures) as server:
        done = figures(judge("--mode=single", "--judge=j", f"--url={server.url}", "--retries=9", "--json"))
    assert (done["judged"], done["retries"]) == (24, len(failures))


def test_a_judge_that_stays_away_ends_the_run_and_what_was_judged_is_kept(judge, bench):
    reply = ScriptedJudge().reply
    with ChatServer(reply, [200] * 7 + [503] * 1000) as server:
        args = ("--mode=single", "--judge=j", f"--url={server.url}", "--retries=2")
        done = judge(*args)
        assert done.returncode == 1
        (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert "HTTP 503" in sentence
        assert "attempt 3 of 3" in sentence
        path = bench / "model_judgment" / "j_single.jsonl"
        assert len(read_rows(path)) == 7
        server.failures = []
        asked = len(server.asked)
        assert figures(judge(*args, "--json"))["judged"] == 17
        assert len(server.asked) == asked + 17
    assert len(set(keys(read_rows(path)))) == 24


def test_a_refused_prompt_is_left_out_but_a_refused_key_ends_the_run(judge, bench):
    with ChatServer(ScriptedJudge().reply, [200] * 5 + [400]) as server:
        done = judge("--mode=single", "--judge=j", f"--url={server.url}")
    assert done.returncode == 1
    assert "1 were refused and left out" in done.stderr
    assert len(read_rows(bench / "model_judgment" / "j_single.jsonl")) == 23
    with ChatServer(ScriptedJudge().reply, [401] * 1000) as server:
        done = judge("--mode=single", "--judge=k", f"--url={server.url}")
    assert done.returncode == 1
    assert "HTTP 401" in done.stderr
    assert len(server.asked) < 6


def test_a_run_killed_at_any_moment_continues_to_the_same_judgments(judge, bench):
    args = ("--mode=pairwise_all", "--judge=j", *FAST)
    path = bench / "model_judgment" / "j_pair.jsonl"
    whole = figures(judge(*args, "--url=scripted:often_first", "--label=whole", "--json"))
    with ChatServer(ScriptedJudge(first=0.3).reply, pause_s=0.02) as server:
        command = ["mixattn.evals", "judge", "run", f"--bench={bench}", *args]
        command.append(f"--url={server.url}")
        asked_before = 0
        for lines in (3, 9, 15):
            process = forked.Process(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not path.exists() or path.read_bytes().count(b"\n") < lines:
                assert process.poll() is None
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            done = path.read_bytes().count(b"\n")
            with path.open("ab") as torn:  # as if the kill had come in the middle of a write
                torn.write(path.read_bytes().splitlines()[0][: 40 * lines])
            time.sleep(0.1)
            # A worker has at most one match of two calls under way.
            assert len(server.asked) - asked_before <= 2 * (done + 2)
            asked_before = len(server.asked)
        kept = path.read_bytes().count(b"\n")
        last = figures(judge(*args, f"--url={server.url}", "--json"))
    assert (last["reused"], last["judged"]) == (kept, 24 - kept)
    assert len(server.asked) - asked_before == 2 * (24 - kept)
    rows, oracle = read_rows(path), read_rows(Path(whole["file"]))
    for row in (*rows, *oracle):
        row["judge"] = row["judge"][1:]
    assert verdicts(rows) == verdicts(oracle)


def test_a_budget_ends_a_run_between_matches(judge, bench):
    prices = ("--input_usd_per_mtok=1000", "--output_usd_per_mtok=10000")  # 0.2 USD a call
    with ChatServer(ScriptedJudge().reply) as server:
        done = judge(
            "--mode=pairwise_all", "--judge=j", f"--url={server.url}", *prices, "--max_usd=1", "--json"
        )
    assert done.returncode == 1
    assert "budget of 1.0 USD is spent" in done.stderr
    spent = json.loads(done.stdout)
    assert spent["complete"] is False
    assert 1 <= spent["usd"] <= 1.0 + 2 * 2 * 0.2
    assert spent["calls"] == 2 * len(read_rows(bench / "model_judgment" / "j_pair.jsonl"))


def test_a_dry_run_counts_calls_and_asks_nothing(judge, bench):
    with ChatServer(ScriptedJudge().reply) as server:
        price = "--output_usd_per_mtok=1000000"
        plan = figures(
            judge(
                "--mode=pairwise_all",
                "--judge=j",
                f"--url={server.url}",
                "--dry_run",
                price,
                "--json",
                "--max_tokens=3",
            )
        )
        assert not server.asked
    assert (plan["matches"], plan["calls"], plan["output_tok_at_most"], plan["usd_at_most"]) == (
        24,
        48,
        144,
        144.0,
    )
    assert not (bench / "model_judgment").exists()


def test_answers_changed_since_are_noticed(judge, bench):
    args = ("--mode=single", "--judge=j", "--url=scripted:fair")
    assert "warning" not in judge(*args).stderr
    assert "warning" not in judge(*args).stderr
    path = bench / "model_answer" / "ant.jsonl"
    path.write_text(path.read_text().replace("w0x0", "other"))
    assert "warning: 2 judgments" in judge(*args).stderr


def test_likelihood_and_answer_verdicts_have_files_of_their_own(judge):
    url = "--url=scripted:fair"
    answer = figures(judge("--mode=pairwise_all", "--judge=j", url, "--verdict=answer", "--json"))
    rows = read_rows(Path(answer["file"]))
    assert answer["file"].endswith("j-answer_pair.jsonl")
    assert answer["calls"] == 24  # each answer of each turn once, whatever pairs and orders it is in
    assert all(row["g1_winner"] == row["g2_winner"] != "error" for row in rows)
    likely = figures(judge("--mode=pairwise_all", "--judge=j", url, "--verdict=likelihood", "--json"))
    row = read_rows(Path(likely["file"]))[0]
    assert set(row["g1_logprobs"]) == {"[[A]]", "[[B]]", "[[C]]"}
    single = figures(judge("--mode=single", "--judge=j", url, "--verdict=likelihood", "--json"))
    assert all(1 <= row["score"] <= 10 for row in read_rows(Path(single["file"])))


def test_the_bias_command_measures_every_kind_and_continues(judge):
    args = ("--judge=g", "--url=scripted:gullible", "--models=ant,bee", "--json")
    done = figures(judge(*args, command="bias"))
    assert done["position"]["consistent"]["share"] == 1.0
    assert done["verbosity"]["failure"]["share"] == 0.0
    assert done["injection"]["plain"]["end_mark"]["share"] == 1.0
    assert (
        done["injection"]["nonce"]["end_mark"]["share"]
        == done["injection"]["plain"]["harmless text"]["share"]
    )
    assert done["calls"] > 0
    again = figures(judge(*args, command="bias"))
    assert again["calls"] == 0
    assert again["position"] == done["position"]
