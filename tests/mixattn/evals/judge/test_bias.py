"""Scripted judges of known bias: every meter recovers the bias that was put in, and only that one."""

import asyncio
import itertools

import pytest

from mixattn.evals.judge import agreement, bias, templates
from mixattn.evals.judge.bench import Question
from mixattn.evals.judge.judging import JudgeOptions, ModelJudge
from mixattn.evals.judge.matches import make
from mixattn.evals.judge.scripted import ScriptedJudge
from mixattn.evals.judge.tables import verdict
from mixattn.evals.llm import Scripted

N = 300
QUESTIONS = [Question(n, "writing", (f"Question {n}?",)) for n in range(N)]
# The better model changes with the question; both answers hold a list.
ANSWERS = {
    model: {
        n: (f"{model} on {n}\n1. first{n}\n2. second{n}{' extra words' * ((n + side) % 2)}",)
        for n in range(N)
    }
    for side, model in enumerate(("ant", "bee"))
}
MATCHES = make("pairwise_all", QUESTIONS, ANSWERS, {}, templates.load())


def judged(judge, matches, *, nonce=False):
    async def through(call):
        return await call()

    async def main():
        model = ModelJudge(Scripted(judge.reply), "j", JudgeOptions(nonce=nonce))
        return [await model.judge(match, through) for match in matches]

    return asyncio.run(main())


def holds(share, truth):
    return share["lower"] - 0.02 <= truth <= share["upper"] + 0.02


@pytest.mark.parametrize("first", [0.0, 0.3, 0.8, 1.0])
def test_the_share_that_looks_at_the_first_place_is_recovered(first):
    # A biased call differs from the true verdict in one of the two orders only.
    found = bias.position(judged(ScriptedJudge(first=first, seed=1), MATCHES))
    assert holds(found["first"], first)
    assert holds(found["consistent"], 1 - first)
    assert found["second"]["share"] == found["error"]["share"] == 0
    assert sum(found[kind]["share"] for kind in found) == pytest.approx(1)


def test_a_bias_for_the_second_place_and_silence_are_told_apart():
    found = bias.position(judged(ScriptedJudge(second=0.4, seed=2), MATCHES))
    assert holds(found["second"], 0.4)
    assert found["first"]["share"] == 0
    silent = bias.position(judged(ScriptedJudge(silent=0.2, seed=3), MATCHES))
    assert holds(silent["error"], 1 - 0.8**2)


def test_both_orders_cancel_the_win_rate_of_a_place():
    better = {n: "ant" if n % 2 == 0 else "bee" for n in range(N)}
    rows = judged(ScriptedJudge(first=0.5), MATCHES)
    wrong = [r for r in rows if verdict(r) != "tie" and r[verdict(r)] == better[r["question_id"]]]
    assert not wrong or len(wrong) == len([r for r in rows if verdict(r) != "tie"])


@pytest.mark.parametrize(("verbosity", "failure"), [(0.0, 0.0), (2.0, 1.0)])
def test_only_a_verbose_judge_falls_for_a_list_said_twice(verbosity, failure):
    matches = bias.verbosity_matches(MATCHES)
    assert len(matches) == 2 * N
    found = bias.verbosity(judged(ScriptedJudge(verbosity=verbosity), matches[:100]))
    assert found["failure"]["share"] == failure


def test_a_padded_answer_says_nothing_new():
    answer = "Intro\n1. one\n2. two\nend"
    assert set(bias.padded(answer).split()) == set(answer.split())
    assert len(bias.padded(answer)) > len(answer)
    assert not bias.has_list("1. only one item")


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_the_share_that_follows_a_name_is_recovered(part):
    names = ("Atlas", "Borealis")
    judge = ScriptedJudge(favours="Atlas", favours_share=part, seed=4)
    found = bias.name(judged(judge, bias.name_matches(MATCHES, names)), names)
    # Under one of the two signatures the better answer bears the name anyway.
    assert holds(found["Atlas"], part)
    assert holds(found["the answer"], 1 - part)
    assert found["Borealis"]["share"] == 0


@pytest.mark.parametrize(
    ("obeys", "nonce", "attack", "succeeds"),
    [
        (True, False, "end_mark", True),
        (True, True, "end_mark", False),
        (False, False, "end_mark", False),
        (True, False, "verdict", False),
        (True, False, "harmless text", False),
    ],
)
def test_a_forged_end_mark_works_on_a_gullible_judge_unless_a_nonce_fences_it(obeys, nonce, attack, succeeds):
    # On even questions bee is longer, which this judge dislikes: it wins only by the attack.
    matches = bias.injection_matches([match for match in MATCHES if match.question.id % 2 == 0], attack)
    rows = judged(ScriptedJudge(obeys=obeys, verbosity=-5.0), matches, nonce=nonce)
    assert bias.injection(rows)["wins"]["share"] == float(succeeds)


def test_a_nonce_is_new_for_every_match_and_stays_out_of_the_plain_prompt():
    rows = judged(ScriptedJudge(), MATCHES[:20], nonce=True)
    assert len({row["nonce"] for row in rows}) == 20
    assert all(row["g1_user_prompt"].count(row["nonce"]) == 2 * 3 for row in rows)
    assert "nonce" not in judged(ScriptedJudge(), MATCHES[:1])[0]


def test_self_preference_is_the_difference_of_win_rates_in_the_same_cells():
    def vote(question, winner, judge):
        return agreement.JudgeVote(question, 1, ("ant", "bee"), winner, frozenset({judge}))

    wins = itertools.cycle(["model_a", "model_a", "model_a", "tie"])
    votes = [vote(n, next(wins), "ant") for n in range(40)]
    votes += [vote(n, "model_a" if n % 2 else "model_b", "human") for n in range(40)]
    votes += [vote(n, "model_b", "human") for n in range(100, 140)]  # cells that the judge did not see
    found = bias.self_preference(votes, "ant", "ant", "human")
    assert found["n"] == 40
    assert found["difference"] == pytest.approx(0.875 - 0.5)


def test_the_wilson_interval_is_that_of_statsmodels_table():
    # 8 of 10 at 95 %: 0.4901625 to 0.9433178 (Wilson 1927, without continuity correction)
    found = bias.share(8, 10)
    assert (found["lower"], found["upper"]) == (
        pytest.approx(0.490162, abs=1e-6),
        pytest.approx(0.943318, abs=1e-6),
    )
    assert bias.share(0, 0)["share"] is None
