"""Verdicts into Bradley-Terry ratings."""

import math

import pytest

from mixattn.evals.judge import ranking


def row(question, g1, g2=None, label=None):
    found = {
        "question_id": question,
        "model_1": "ant",
        "model_2": "bee",
        "g1_winner": g1,
        "g2_winner": g2 or g1,
    }
    return found | ({"g1_label": label, "g2_label": label} if label else {})


def rating(rows, **options):
    models = {each["model"]: each for each in ranking.rank(rows, **options)["models"]}
    return models["ant"]["rating"] - models["bee"]["rating"], models


def test_two_models_are_apart_by_the_logarithm_of_their_odds():
    rows = [row(n, "model_1" if n < 30 else "model_2") for n in range(40)]
    gap, models = rating(rows)
    assert gap == pytest.approx(400 * math.log10(3), abs=1e-4)
    assert models["ant"]["lower"] < models["ant"]["rating"] < models["ant"]["upper"]


def test_orders_that_disagree_are_ties_and_errors_do_not_count():
    rows = [row(n, "model_1") for n in range(10)] + [row(n, "model_1", "model_2") for n in range(10, 20)]
    gap, models = rating([*rows, *(row(n, "error", "model_2") for n in range(20, 60))])
    assert gap == pytest.approx(400 * math.log10(15 / 5), abs=1e-4)
    assert (models["ant"]["wins"], models["ant"]["ties"]) == (10, 10)


def test_a_strong_verdict_counts_as_several_wins():
    strong = [row(n, "model_1", label="[[A>>B]]") for n in range(20)]
    rows = [*strong, *(row(n, "model_2", label="[[B>A]]") for n in range(20, 60))]
    assert rating(rows, strong_wins=3)[0] == pytest.approx(400 * math.log10(60 / 40), abs=1e-4)
    assert rating(rows, strong_wins=1)[0] == pytest.approx(400 * math.log10(20 / 40), abs=1e-4)


def test_more_questions_with_the_same_verdicts_narrow_the_interval_but_repeated_ones_do_not():
    few = [row(n, "model_1" if n % 4 else "model_2") for n in range(40)]
    many = [row(n, "model_1" if n % 4 else "model_2") for n in range(160)]
    repeated = few * 4

    def width(rows):
        model = rating(rows)[1]["ant"]
        return model["upper"] - model["lower"]

    assert width(many) == pytest.approx(width(few) / 2, rel=0.15)
    assert width(repeated) == pytest.approx(width(few), rel=0.1)


def test_nothing_to_rank_is_said():
    with pytest.raises(ValueError, match="none of 1 pairs has a verdict"):
        ranking.rank([row(1, "error")])
    with pytest.raises(ValueError, match="undefeated"):
        ranking.rank([row(1, "model_1")])
