"""Scores and win rates against a second implementation of FastChat's tables."""

import itertools
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.judge import tables

MODELS = ("ant", "bee", "cat")
WINNERS = ("model_1", "model_2", "tie", "error")
SINGLE = st.lists(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(MODELS),
            "turn": st.sampled_from([1, 2]),
            "score": st.sampled_from([-1, 1, 5.5, 10]),
        }
    ),
    min_size=1,
    max_size=30,
)
PAIRS = st.lists(
    st.tuples(
        st.permutations(MODELS), st.sampled_from(WINNERS), st.sampled_from(WINNERS), st.sampled_from([1, 2])
    ),
    min_size=1,
    max_size=30,
).map(
    lambda rows: [
        {"model_1": m[0], "model_2": m[1], "g1_winner": a, "g2_winner": b, "turn": t} for m, a, b, t in rows
    ]
)


@given(SINGLE)
def test_single_means_are_those_of_the_oracle(rows):
    figures = tables.single(rows)
    for model, turns in itertools.product(MODELS, (("turn_1", (1,)), ("turn_2", (2,)), ("average", (1, 2)))):
        name, wanted = turns
        scores = [
            r["score"] for r in rows if r["model"] == model and r["turn"] in wanted and r["score"] != -1
        ]
        if scores:
            assert figures[name][model] == pytest.approx(sum(scores) / len(scores))
        else:
            assert model not in figures[name]
    assert sum(figures["unparsed"].values()) == sum(row["score"] == -1 for row in rows)
    assert set(figures["unparsed"]) == {row["model"] for row in rows}


def oracle_pairs(rows, baseline=None):
    """FastChat's loop over rows."""
    rows = [row for row in rows if "error" not in (row["g1_winner"], row["g2_winner"])]
    count = defaultdict(lambda: {"win": 0, "loss": 0, "tie": 0})
    for row in rows:
        if baseline and baseline not in (row["model_1"], row["model_2"]):
            continue
        if row["g1_winner"] == "tie" or row["g1_winner"] != row["g2_winner"]:
            count[row["model_1"]]["tie"] += 1
            count[row["model_2"]]["tie"] += 1
        else:
            winner, loser = row["model_1"], row["model_2"]
            if row["g1_winner"] == "model_2":
                winner, loser = loser, winner
            count[winner]["win"] += 1
            count[loser]["loss"] += 1
    return {model: each for model, each in count.items() if model != baseline}


@given(PAIRS, st.sampled_from(["", *MODELS]))
def test_pairwise_counts_are_those_of_the_oracle(rows, baseline):
    if baseline and not any(baseline in (row["model_1"], row["model_2"]) for row in rows):
        with pytest.raises(ValueError, match="is in no row"):
            tables.pairwise(rows, baseline)
        return
    figures = tables.pairwise(rows, baseline)
    oracle = oracle_pairs(rows, baseline or None)
    assert {m: {k: e[k] for k in ("win", "loss", "tie")} for m, e in figures["models"].items()} == oracle
    for each in figures["models"].values():
        n = each["win"] + each["loss"] + each["tie"]
        assert each["win_rate"] + each["loss_rate"] + each["tie"] / n == pytest.approx(1)
        assert each["win_rate_adjusted"] == pytest.approx(each["win_rate"] + 0.5 * each["tie"] / n)


@given(PAIRS)
def test_exchanging_the_places_of_the_models_mirrors_nothing_away(rows):
    other = {"model_1": "model_2", "model_2": "model_1"}
    mirrored = [
        row
        | {"model_1": row["model_2"], "model_2": row["model_1"]}
        | {game: other.get(row[game], row[game]) for game in ("g1_winner", "g2_winner")}
        for row in rows
    ]
    assert tables.pairwise(rows) == tables.pairwise(mirrored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g1_winner": "A"}, "g1_winner is 'A'"),
        ({"turn": 3}, "turn is 3"),
        ({"model_2": "ant"}, "both 'ant'"),
        ({"model_1": None}, "not a model's name"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, change, message):
    from tests.mixattn.evals.judge.benches import write_rows

    row = {"model_1": "ant", "model_2": "bee", "g1_winner": "tie", "g2_winner": "tie", "turn": 1}
    path = write_rows(tmp_path / "j.jsonl", [row, row | change])
    with pytest.raises(ValueError, match=f"row 2: .*{message}"):
        tables.read_judgments(path, "pair")
