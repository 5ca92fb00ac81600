"""The long-context suite: its tasks, its log, its statistics, and a run on a small checkpoint."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest

from mixattn.evals.longcontext import journal, pictures, statistics
from mixattn.evals.longcontext.example import score
from mixattn.evals.longcontext.journal import AnswerLog
from mixattn.evals.longcontext.policies import FULL, KeepPolicy, grid
from mixattn.evals.longcontext.suite import SuiteGrid, run
from mixattn.evals.longcontext.tasks import AT_A_DEPTH, TASKS


def words(text):
    return len(text.split())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [300, 1200])
def test_a_context_fills_its_length_and_holds_every_answer(task, length):
    for index in range(3):
        example = TASKS[task](0, index, length, 0.5, words)
        used = words(example.context) + words(example.question + example.lead)
        assert length - 60 <= used <= length
        assert all(answer in example.context for answer in example.answers)
        assert not any(answer in example.question + example.lead for answer in example.answers)
        assert example == TASKS[task](0, index, length, 0.5, words)
        assert example.answers != TASKS[task](1, index, length, 0.5, words).answers


@pytest.mark.parametrize("task", AT_A_DEPTH)
def test_an_answer_lies_at_its_depth(task):
    for depth in (0.0, 0.25, 0.75, 1.0):
        example = TASKS[task](0, 0, 1500, depth, words)
        asked = example.lead.removeprefix("Answer: ").split(" was")[0]
        at = example.context.index(f"{asked} stands" if task == "documents" else example.answers[0])
        assert abs(at / len(example.context) - depth) < 0.06


def test_the_same_question_is_asked_at_every_length_and_depth():
    for task in AT_A_DEPTH:
        asked = {TASKS[task](3, 2, n, d, words).question for n in (300, 900) for d in (0.1, 0.9)}
        assert len(asked) == 1


@pytest.mark.parametrize(("task", "n"), [("common_words", 5), ("frequent_words", 3)])
@pytest.mark.parametrize("length", [300, 1000, 4000])
def test_the_words_asked_for_are_the_most_frequent(task, n, length):
    example = TASKS[task](0, 1, length, 0.5, words)
    bag = Counter(re.findall(r"[a-z]+", example.context.split("\n", 1)[1]))
    most = [word for word, _ in bag.most_common(n)]
    assert sorted(most) == sorted(example.answers)
    assert bag.most_common(n)[-1][1] > bag.most_common(n + 1)[-1][1]


def test_a_chain_of_variables_leads_to_its_value():
    example = TASKS["tracking"](0, 0, 800, 0.5, words)
    value, holds = example.question.split("value ")[1].split("?")[0], {}
    for name, said in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", example.context):
        holds[name] = holds.get(said, said)
    assert {name for name, held in holds.items() if held == value} == set(example.answers)


def test_a_length_that_a_task_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"needs \d+ tokens of context, and the length leaves -?\d+"):
        TASKS["needle_queries"](0, 0, 60, 0.5, words)


def test_the_score_is_the_share_of_the_strings_found():
    example = TASKS["needle_values"](0, 0, 400, 0.5, words)
    assert score(example, " ".join(example.answers)) == 1
    assert score(example, f"They are {example.answers[2]}.") == 0.25
    assert score(example, "7") == 0


class Scripted:
    """A model that remembers what its budget holds: the last part of the context."""

    def __init__(self):
        self.calls = 0

    def count(self, text):
        return words(text)

    def answers(self, examples, policy, mode):
        self.calls += 1
        kept = 1.0 if policy.scorer == FULL else policy.budget
        return [
            " ".join(a for a in e.answers if a in e.context[-int(kept * len(e.context)) :]) for e in examples
        ]

    def nats(self, task, length, indices, policies):
        return [[3.0 + (p.scorer != FULL) / p.budget for _ in indices] for p in policies]


def small(**changes):
    asked = {
        "tasks": ("needle", "tracking", "text"),
        "lengths": (200, 400),
        "depths": (0.1, 0.9),
        "policies": tuple(grid(["recent"], ["0.25", "0.5"])),
        "samples": 3,
        "batch": 4,
    }
    return SuiteGrid(**asked | changes)


def test_a_run_that_was_stopped_anywhere_goes_on_and_asks_nothing_twice(tmp_path):
    whole = AnswerLog(tmp_path / "whole", {"seed": 0})
    run(small(), Scripted(), whole, lambda more, doing: None)
    assert len(whole.answers) == small().size
    lines = whole.path.read_text().splitlines(keepends=True)
    for cut in random.Random(0).sample(range(1, len(whole.path.read_text())), 8):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "answers.jsonl").write_text(
            "".join(lines)[:cut]
        )  # as after kill -9 in the middle of a line
        log = AnswerLog(folder, {"seed": 0})
        run(small(), Scripted(), log, lambda more, doing: None)
        assert log.answers == whole.answers
        assert sorted(log.path.read_text().splitlines()) == sorted(whole.path.read_text().splitlines())


def test_answers_of_other_settings_are_refused(tmp_path):
    AnswerLog(tmp_path, {"checkpoint": "a", "seed": 0})
    with pytest.raises(ValueError, match="holds answers with seed=0, not 1"):
        AnswerLog(tmp_path, {"checkpoint": "a", "seed": 1})


def test_a_line_that_is_no_answer_is_named(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"task": "needle"}\n')
    with pytest.raises(ValueError, match="line 1 is no answer"):
        journal.read(tmp_path / "answers.jsonl")


def test_differences_are_paired_and_intervals_cover_the_mean(tmp_path):
    log = AnswerLog(tmp_path, {})
    run(small(samples=40), Scripted(), log, lambda more, doing: None)
    rows = {(r["task"], r["length"], r["policy"]): r for r in statistics.table(list(log.answers.values()))}
    assert rows["needle", 400, "full"]["score"] == 1
    cut = rows["needle", 400, "recent 0.25"]
    assert cut["score"] == 0.5  # depth 0.9 is kept and 0.1 is not
    assert cut["low"] < 0.5 < cut["high"]
    assert cut["minus_full"] == -0.5
    text = rows["text", 200, "recent 0.5"]
    assert text["minus_full_low"] == text["minus_full_high"] == 2.0  # the same on every row


def test_the_report_says_where_h2o_loses_and_only_there(tmp_path):
    def answer(task, policy, index, score):
        head = {"task": task, "length": 100, "mode": "aware", "depth": 0.5, "policy": policy, "index": index}
        return head | {"score": score}

    scores = {"full": 1.0, "h2o 0.2": 0.5, "tova 0.2": 0.75, "random 0.2": 0.25, "tova 0.5": 1.0}
    answers = [
        answer(task, policy, index, score + (index % 3) / 100)
        for task in ("needle", "text")
        for policy, score in scores.items()
        for index in range(30)
    ]
    said = statistics.where_it_loses(statistics.table(answers), ("text",))
    assert [line.split(" by ")[0] for line in said] == [
        "needle, 100 tokens, budget 0.2: h2o loses to the full cache",
        "needle, 100 tokens, budget 0.2: h2o loses to tova",
        "text, 100 tokens, budget 0.2: h2o loses to random",  # nats: less is better
    ]
    unsure = [answer("needle", "h2o 0.2", i, i % 2) for i in range(30)]
    unsure += [answer("needle", "tova 0.2", i, (i + 1) % 2) for i in range(30)]
    assert statistics.where_it_loses(statistics.table(unsure), ()) == []


def test_an_interval_holds_the_true_mean_about_19_times_in_20():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = statistics.interval(rng.exponential(size=60))
        held += found.low <= 1 <= found.high
    assert 176 <= held <= 199


def test_both_pictures_are_drawn(tmp_path):
    log = AnswerLog(tmp_path, {})
    run(small(), Scripted(), log, lambda more, doing: None)
    answers = list(log.answers.values())
    for draw, name in ((pictures.heat_map, "depths.svg"), (pictures.budget_curve, "budgets.svg")):
        assert draw(answers, tmp_path / name)
        assert "<svg" in (tmp_path / name).read_text()[:400]
    assert not pictures.heat_map([a for a in answers if a["task"] == "text"], tmp_path / "none.svg")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("niddle",)}, "'niddle' is not one of needle"),
        ({"depths": (1.5,)}, "depth 1.5 is not in"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_a_bad_grid_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        small(**changes)


def test_a_variant_sets_its_field_and_an_unknown_one_is_refused():
    (_, always, alone) = grid(["h2o+always", "recent"], ["0.2"], sinks=4, recent=0.5)
    assert always.name == "h2o+always 0.2"
    assert always.fields == {"scorer": "h2o", "budget": 0.2, "sinks": 4, "recent": 0.5, "promotion": "always"}
    assert alone.fields["sinks"] == 0  # with sinks it would be streaming
    with pytest.raises(ValueError, match="'allways' is not one of always"):
        KeepPolicy("h2o+allways").fields  # noqa: B018


def test_a_budget_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="'half' is neither"):
        grid(["h2o"], ["half"])
    assert KeepPolicy("h2o", 64).name == "h2o 64"
    assert (
        json.dumps(KeepPolicy("snapkv", 0.5).fields)
        == '{"scorer": "snapkv", "budget": 0.5, "when": "prompt"}'
    )
