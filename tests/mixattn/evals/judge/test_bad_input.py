"""Bad input is one sentence and exit code 2, and nothing is left behind."""

import json

import pytest

from tests.mixattn.evals.judge.benches import make_bench, write_rows

RUN = ("run", "--judge=j", "--url=scripted:fair")


def fails(run_module, *args):
    done = run_module("mixattn.evals", "judge", *args)
    assert (done.returncode, done.stdout) == (2, ""), done
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    return sentence


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("mend",), "'mend' is not one of questions, answer"),
        (("run", "--judge=j"), "--bench is missing"),
        ((*RUN, "--bench=/nowhere"), "is not a folder"),
        (("agreement", "--judges=human"), "names 1 judges"),
        (("agreement", "--judges=a,b", "--votes=/nowhere.json"), "/nowhere.json does not exist"),
        (("show", "--judgments=/nowhere.jsonl"), "/nowhere.jsonl does not exist"),
        (("show", "--mode=pairwise_baseline", "--judgments=x"), "pairwise_baseline needs one"),
        (("show", "--mode=triple"), "--mode"),
    ],
)
def test_wrong_flags(run_module, args, message):
    assert message in fails(run_module, *args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--url=ftp://x",), "neither http"),
        (("--url=scripted:nobody",), "'nobody' is not one of"),
        (("--url=scripted:fair?first=many",), "is not a float"),
        (("--models=ant,dog",), "dog.jsonl does not exist; the models with answers are ant, bee, cat"),
        (("--mode=pairwise_all", "--models=ant"), "only ant has answers"),
        (("--verdict=answer",), "--mode=single shows one"),
        (("--max_usd=1",), "needs prices"),
        (("--parallel=0",), "must be at least 1"),
        (("--api_key_env=NO_SUCH_KEY", "--url=http://127.0.0.1:9/v1"), "not set in the environment"),
        (("--templates=/nowhere.jsonl",), "does not exist"),
        (("--label=../../x", "--json"), "cannot name a file"),
    ],
)
def test_wrong_values(run_module, tmp_path, args, message):
    bench = make_bench(tmp_path / "b")
    assert message in fails(run_module, *RUN, f"--bench={bench}", *args)
    judged = bench / "model_judgment"
    assert not judged.exists() or all(not path.read_bytes() for path in judged.iterdir())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("question.jsonl", '{"question_id": 1, "category": "stem"}\n', "row 1: the field 'turns' is missing"),
        ("question.jsonl", '{"question_id": 1, "category": "stem", "turns": []}\n', "is empty"),
        ("question.jsonl", '{"question_id": 1, "category": "stem", "turns": "hi"}\n', "not a list of texts"),
        ("question.jsonl", '{"question_id": 1', "line 1, is torn"),
        ("question.jsonl", '{"question_id": 1, "category": "stem", "turns": ["a"]}\n' * 2, "is there twice"),
        ("model_answer/ant.jsonl", '{"question_id": 81}\n', "row 1 holds no question_id with choices"),
        ("model_answer/ant.jsonl", "", "answers 0 of 2 turns of question 81"),
        ("reference_answer/gold.jsonl", "", "question 82 is of category math"),
        ("model_judgment/j_single.jsonl", '{"torn\n{"a": 1}\n', "line 1, is torn"),
        ("model_judgment/j_single.jsonl", '{"a": 1}\n', "a judgment lacks"),
    ],
)
def test_wrong_files(run_module, tmp_path, name, text, message):
    bench = make_bench(tmp_path / "b")
    (bench / name).parent.mkdir(exist_ok=True)
    (bench / name).write_text(text)
    assert message in fails(run_module, *RUN, f"--bench={bench}")


def test_a_judge_unknown_to_the_votes_is_told_who_is_there(run_module, tmp_path):
    vote = {
        "question_id": 1,
        "model_a": "a",
        "model_b": "b",
        "winner": "model_a",
        "judge": "expert_1",
        "turn": 1,
    }
    path = write_rows(tmp_path / "v.jsonl", [vote])
    sentence = fails(run_module, "agreement", "--judges=gpt4-pair,human", f"--votes={path}")
    assert "'gpt4-pair' cast no vote; the files hold expert_1, human" in sentence
    path.write_text(json.dumps([vote, vote | {"winner": "left"}]))
    sentence = fails(run_module, "agreement", "--judges=human,human", f"--votes={path}")
    assert "row 2: winner is 'left'" in sentence


def test_help_teaches(run_module):
    for command in ("questions", "answer", "run", "show", "agreement", "bias"):
        done = run_module("mixattn.evals", "judge", command, "--help")
        assert done.returncode == 0
        assert f"judge {command}" in done.stdout
