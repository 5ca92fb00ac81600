"""Attempts are counted, kept, and continued exactly where they stopped."""

import json

import pytest

from mixattn.evals.dafny.scripted import ScriptedVerifier
from mixattn.evals.dafnybench import layout, models, runner, show
from mixattn.evals.dafnybench.tasks import own, public

TASKS = own()[:4]
HAVE = {task.original for task in TASKS}


def fake(program):
    return "verified" if program in HAVE else "failed"


def finished(folder, model, *, attempts=5, settings=None, verify=None, **options):
    journal = runner.Journal(folder, settings or {"model": "x"})
    verify = verify or ScriptedVerifier(fake)
    list(runner.run(TASKS, model, verify, journal, attempts=attempts, **options))
    return journal.attempts


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_oracle_at_k_stops_at_k(tmp_path, k):
    found = finished(tmp_path, models.oracle_at(k))
    assert {len(past) - 1 for past in found.values()} == {k}
    assert all(past[-1].accepted and not past[-1].feedback for past in found.values())
    assert all(past[i].feedback for past in found.values() for i in range(k))


def test_identity_uses_every_attempt_and_is_never_accepted(tmp_path):
    found = finished(tmp_path, models.identity, attempts=3)
    assert {len(past) for past in found.values()} == {4}
    assert not any(a.accepted for past in found.values() for a in past)


@pytest.mark.parametrize("kind", models.CHEATERS)
def test_no_cheater_is_accepted_however_gullible_the_verifier(tmp_path, kind):
    gullible = ScriptedVerifier(
        lambda program: "failed" if program in {t.stripped for t in TASKS} else "verified"
    )
    found = finished(tmp_path, models.cheater(kind), attempts=1, verify=gullible)
    assert not any(a.accepted for past in found.values() for a in past)


def test_a_killed_run_continues_in_the_middle_of_a_conversation(tmp_path):
    whole = finished(tmp_path / "whole", models.oracle_at(3))
    finished(tmp_path / "part", models.oracle_at(3), budget=runner.Budget(calls=5), parallel=1)
    with (tmp_path / "part" / "attempts.jsonl").open("a") as out:
        out.write('{"task": "torn')
    assert finished(tmp_path / "part", models.oracle_at(3)) == whole
    lines = (tmp_path / "part" / "attempts.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 4 * len(TASKS)


def test_a_run_with_other_settings_is_refused(tmp_path):
    finished(tmp_path, models.identity, attempts=1)
    with pytest.raises(ValueError, match="model=x, not y"):
        runner.Journal(tmp_path, {"model": "y"})


def test_the_noisy_model_loses_more_hints_with_p():
    def lost(p):
        return sum(len(models.noisy(p, 0)(task, [])) for task in own())

    assert lost(0.0) == sum(len(task.original) for task in own())
    assert lost(0.0) > lost(0.3) > lost(0.7) > lost(1.0)


def test_the_conversation_holds_every_attempt_and_what_was_said():
    past = [models.Attempt(f"reply {i}", "", False, False, "failed", f"feedback {i}") for i in range(3)]
    messages = models.conversation(TASKS[0], past)
    assert [m["role"] for m in messages] == ["system", "user", *["assistant", "user"] * 3]
    assert TASKS[0].stripped in messages[1]["content"]
    assert [m["content"] for m in messages[2::2]] == ["reply 0", "reply 1", "reply 2"]
    assert all(f"feedback {i}" in m["content"] for i, m in enumerate(messages[3::2]))


def test_a_time_out_is_said_to_be_one(tmp_path):
    slow = ScriptedVerifier(lambda _: "timeout")
    found = finished(tmp_path, models.identity, attempts=1, verify=slow)
    assert all("ran out of time" in past[0].feedback for past in found.values())


@pytest.mark.parametrize(
    "reply", ["a <answer>X</answer>", "```dafny\nX```\n```\ny```", "```\nX\n```", "```Dafny\nX", "X"]
)
def test_the_program_is_found_in_a_reply(reply):
    assert models.program_in(reply).strip() == "X"


def test_files_have_the_public_layout(tmp_path):
    found = finished(tmp_path, models.oracle_at(2))
    layout.write(tmp_path, "m", TASKS, found)
    rows = (tmp_path / "results_summary" / "m_results.csv").read_text().splitlines()
    assert rows[0] == "test_ID,test_file,success_on_attempt_#"
    assert rows[1] == f"000,{TASKS[0].name}_no_hints.dfy,2"
    outputs = json.loads((tmp_path / "reconstructed_files" / "m_outputs.json").read_text())
    assert outputs["000"]["llm_output"].strip() == TASKS[0].original.strip()


def test_every_rate_names_its_denominator(tmp_path):
    found = finished(tmp_path, models.oracle_at(2))
    table = show.table(TASKS, found, {TASKS[0].name}, "2.3")
    assert table["rates"]["all tasks"]["of"] == 4
    assert table["rates"]["original verifies with this verifier"]["of"] == 1
    assert [row["accepted"] for row in table["by_attempt"]] == [0, 0, 4]
    assert "4.3" in show.lines(table)


def test_a_checkout_without_files_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="ground_truth"):
        public(tmp_path)


def test_a_task_that_the_budget_does_not_reach_is_not_counted(tmp_path):
    found = finished(tmp_path, models.identity, attempts=3, budget=runner.Budget(calls=4), parallel=1)
    assert [len(past) for past in found.values()] == [4, 2]
    late = runner.Budget(seconds=1e-9)
    assert finished(tmp_path / "late", models.identity, budget=late) == {}
