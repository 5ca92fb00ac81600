"""Agreement of judges against a second implementation of FastChat's count, and known confusions."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from mixattn.evals.judge import agreement
from tests.mixattn.evals.judge.benches import write_rows

MODELS = ("ant", "bee", "cat")
LABELS = ("model_a", "model_b", "tie", "tie (inconsistent)", "tie (bothbad)")
HUMAN = st.fixed_dictionaries(
    {
        "question_id": st.integers(81, 84),
        "pair": st.permutations(MODELS),
        "winner": st.sampled_from(LABELS),
        "judge": st.sampled_from([["gpt-4", "pair-v2"], "expert_1", "expert_2", "author_1"]),
        "turn": st.sampled_from([1, 2]),
    }
).map(lambda v: {**{k: v[k] for k in v if k != "pair"}, "model_a": v["pair"][0], "model_b": v["pair"][1]})


def kind(judge):
    return "gpt4-pair" if isinstance(judge, list) else "human" if judge.startswith("expert") else "author"


def oracle(rows, one, other, turn, ban):
    """FastChat's count: cells by question and sorted models, every pair of votes, ties equal."""
    cells = {}
    for row in rows:
        a, b, winner = row["model_a"], row["model_b"], row["winner"]
        if a > b:
            a, b, winner = b, a, {"model_a": "model_b", "model_b": "model_a"}.get(winner, winner)
        if row["turn"] == turn:
            winner = "tie" if "tie" in winner else winner
            cells.setdefault((row["question_id"], a, b), {}).setdefault(kind(row["judge"]), []).append(winner)
    pairs = []
    for cell in cells.values():
        if one == other:
            pairs += itertools.combinations(cell.get(one, []), 2)
        else:
            pairs += itertools.product(cell.get(one, []), cell.get(other, []))
    pairs = [pair for pair in pairs if not set(pair) & ban]
    return sum(a == b for a, b in pairs), len(pairs)


@given(
    st.lists(HUMAN, min_size=1, max_size=25), st.sampled_from([("gpt4-pair", "human"), ("human", "human")])
)
def test_counts_are_those_of_the_oracle_and_symmetric(tmp_path_factory, rows, judges):
    path = write_rows(tmp_path_factory.mktemp("votes") / "v.jsonl", rows)
    votes = agreement.read_votes(path)
    found = agreement.both_turns(votes, *judges)
    for turn, (name, ban) in itertools.product((1, 2), (("with_ties", set()), ("without_ties", {"tie"}))):
        each = found[f"turn_{turn}"][name]
        assert (each["agree"], each["total"]) == oracle(rows, *judges, turn, ban)
        assert each["ratio"] == (each["agree"] / each["total"] if each["total"] else None)
        back = agreement.both_turns(votes, *judges[::-1])[f"turn_{turn}"][name]
        assert (back["agree"], back["total"]) == (each["agree"], each["total"])


def votes_of(labels, judge):
    return [
        {"question_id": n, "model_a": "ant", "model_b": "bee", "winner": label, "judge": judge, "turn": 1}
        for n, label in enumerate(labels)
    ]


def test_kappa_is_that_of_scikit_learn_and_a_known_confusion_lies_in_the_interval(tmp_path):
    rng = np.random.default_rng(3)
    truth = rng.choice(LABELS[:3], 1500)
    other = np.where(rng.random(1500) < 0.7, truth, rng.choice(LABELS[:3], 1500))
    path = write_rows(tmp_path / "v.jsonl", votes_of(truth, "expert_1") + votes_of(other, ["j", "pair-v2"]))
    found = agreement.both_turns(agreement.read_votes(path), "human", "j-pair")["turn_1"]
    assert found["with_ties"]["kappa"] == pytest.approx(cohen_kappa_score(truth, other))
    for ties, truth in (("with_ties", 0.7 + 0.3 / 3), ("without_ties", 0.8 / (0.8 + 0.1))):
        each = found[ties]
        se = (truth * (1 - truth) / each["total"]) ** 0.5
        assert abs(each["ratio"] - truth) < 4 * se
        # Every question has one pair of votes here, so its bootstrap is the binomial interval.
        assert each["upper"] - each["lower"] == pytest.approx(2 * 1.96 * se, rel=0.15)


def test_judgment_files_are_votes_too(tmp_path):
    def pair(question, g1, g2):
        row = {"question_id": question, "model_1": "bee", "model_2": "ant", "g1_winner": g1, "g2_winner": g2}
        return row | {"judge": ["j", "pair-v2"], "turn": 1}

    pairs = [pair(1, "model_1", "model_1"), pair(2, "model_1", "model_2"), pair(3, "error", "model_1")]
    scores = {1: (3, 8), 2: (5, 5.1), 3: (-1, 4)}
    singles = [
        {"question_id": q, "model": m, "score": s, "judge": ["j", "single-v1"], "turn": 1}
        for q, both in scores.items()
        for m, s in zip(("ant", "bee"), both)
    ]
    votes = [
        *agreement.read_votes(write_rows(tmp_path / "p.jsonl", pairs)),
        *agreement.read_votes(write_rows(tmp_path / "s.jsonl", singles)),
    ]
    assert [(v.question, v.models, v.winner) for v in votes] == 2 * [
        (1, ("ant", "bee"), "model_b"),
        (2, ("ant", "bee"), "tie"),
    ]
    assert agreement.both_turns(votes, "j-pair", "j-single")["turn_1"]["with_ties"]["agree"] == 2


def test_the_command_prints_the_counts(run_module, tmp_path):
    gpt = write_rows(tmp_path / "g.jsonl", votes_of(["model_a", "model_b", "tie"], ["gpt-4", "pair-v2"]))
    human = tmp_path / "h.json"
    human.write_text(json.dumps(votes_of(["model_a", "model_a", "tie (bothbad)"], "expert_9")))
    files = f"--votes={gpt},{human}"
    done = run_module("mixattn.evals", "judge", "agreement", "--judges=gpt4-pair,human", files, "--json")
    figures = json.loads(done.stdout)
    with_ties = figures["turn_1"]["with_ties"]
    assert (with_ties["agree"], with_ties["total"], with_ties["ratio"]) == (2, 3, pytest.approx(2 / 3))
    assert figures["turn_1"]["without_ties"]["total"] == 2
    assert figures["turn_2"]["with_ties"] == {
        **{"agree": 0, "total": 0, "ratio": None},
        **{"kappa": None, "lower": None, "upper": None},
    }
