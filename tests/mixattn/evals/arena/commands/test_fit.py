import json

import numpy as np
import pytest

from mixattn.evals.arena.stats.counts import count
from mixattn.evals.arena.stats.ranking import Options, rank_models
from mixattn.evals.arena.stats.synthetic import json_lines
from tests.mixattn.evals.arena.worlds import some_votes


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json_lines(some_votes())))
    return path


def test_json_is_one_object_with_the_promised_fields(run_module, file):
    done = run_module("mixattn.evals", "arena", "fit", f"--votes={file}", "--json", "--cluster=judge")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["votes"] == report["used"] == 4000
    assert {"load", "fit"} <= report["seconds"].keys()
    names = [
        "model",
        "rating",
        "se",
        "lower",
        "upper",
        "rank",
        "rank_marginal",
        "battles",
        "wins",
        "losses",
        "ties",
    ]
    assert all(list(model) == names for model in report["models"])
    ratings = [model["rating"] for model in report["models"]]
    assert ratings == sorted(ratings, reverse=True)
    assert all(m["battles"] == m["wins"] + m["losses"] + m["ties"] for m in report["models"])
    assert report["weighting"] == "none"
    assert report["anchor_rating"] == 1000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--anchor=nobody"], "--anchor=nobody is neither 'mean' nor one of the models"),
        (["--weighting=often"], "--weighting"),
        (["--alpha=2"], "--alpha=2.0 is not between 0 and 1"),
        (["--anchor_rating=nan"], "--anchor_rating=nan is not a finite number"),
        (["--category=language=Klingon"], "no vote has language = 'Klingon'"),
        (["--category=planet=Mars"], "field 'planet' is missing"),
        (["--ties=davidson", "--style"], "leave out --style"),
        (["--votes=nowhere.jsonl"], "nowhere.jsonl is not a file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(run_module, file, flags, said):
    done = run_module("mixattn.evals", "arena", "fit", f"--votes={file}", "--json", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_anchored_model_has_no_error_and_differences_stay():
    votes = some_votes()
    mean = {m["model"]: m for m in rank_models(votes, Options())["models"]}
    anchored = {
        m["model"]: m for m in rank_models(votes, Options(anchor="m05", anchor_rating=1114))["models"]
    }
    assert anchored["m05"]["rating"] == anchored["m05"]["lower"] == anchored["m05"]["upper"] == 1114
    assert anchored["m05"]["se"] == 0
    shift = {name: anchored[name]["rating"] - mean[name]["rating"] for name in mean}
    assert max(shift.values()) - min(shift.values()) < 1e-9
    for name, model in mean.items():
        assert anchored[name]["rank"] == model["rank"]  # ranks do not depend on the anchor
        assert anchored[name]["rank_marginal"] == model["rank_marginal"]


@pytest.mark.parametrize("cluster", ["none", "judge"])
def test_bootstrap_and_sandwich_reports_agree(cluster):
    votes = some_votes(votes=6000)
    sandwich = rank_models(votes, Options(cluster=cluster))["models"]
    resampled = rank_models(votes, Options(cluster=cluster, intervals="bootstrap", resamples=300))["models"]
    for a, b in zip(sandwich, resampled):
        assert a["rating"] == b["rating"]
        assert b["lower"] < b["rating"] < b["upper"]
        assert 0.75 < b["se"] / a["se"] < 1.3


def test_dropped_ties_are_neither_used_nor_counted():
    votes = some_votes()
    report = rank_models(votes, Options(ties="drop"))
    assert report["used"] == int((votes.outcome != 1).sum()) < report["votes"]
    assert all(model["ties"] == 0 for model in report["models"])


def test_a_category_is_the_fit_of_its_votes(run_module, file):
    done = run_module(
        "mixattn.evals", "arena", "fit", f"--votes={file}", "--json", "--category=language=german", "--style"
    )
    report = json.loads(done.stdout)
    assert (report["votes"], report["used"]) == (4000, 1000)
    assert report["style"]["headers"] == {"beta": 0.0, "se": 0.0}


def test_counts_of_many_models_do_not_need_a_dense_table(monkeypatch):
    votes = some_votes()
    dense = count(votes)
    monkeypatch.setattr("mixattn.evals.arena.stats.counts.DENSE_CELLS", 0)
    sparse = count(votes)
    for name in ("low", "high", "votes", "weight", "weight_sq"):
        np.testing.assert_array_equal(getattr(sparse, name), getattr(dense, name))


def test_prior_ties_give_an_undefeated_model_a_finite_rating_and_pull_together(tmp_path):
    votes = some_votes(models=3, votes=400, width=1.0)
    won = votes.where((votes.first == 0) & (votes.outcome == 2) | (votes.first > 0) & (votes.second > 0))
    with pytest.raises(ValueError, match="undefeated"):
        rank_models(won, Options())
    gap = []
    for ties in (0.5, 5.0):
        models = rank_models(won, Options(prior_ties=ties))["models"]
        assert models[0]["model"] == "m00"
        assert models[0]["ties"] == 0  # they are no votes
        gap.append(models[0]["rating"] - models[-1]["rating"])
    assert gap[0] > gap[1] > 0
    for wrong in ({"prior_ties": -1}, {"prior_ties": 1, "intervals": "bootstrap"}):
        with pytest.raises(ValueError, match="prior_ties"):
            rank_models(won, Options(**wrong))


def test_a_single_cluster_is_warned_of(run_module, tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json_lines(some_votes(models=3, votes=300, voters=1))))
    done = run_module("mixattn.evals", "arena", "fit", f"--votes={path}", "--cluster=judge", "--json")
    assert json.loads(done.stdout)["clusters"] == 1
    assert "warning: only 1 clusters" not in done.stdout
    done = run_module("mixattn.evals", "arena", "fit", f"--votes={path}", "--cluster=judge")
    assert "only 1 clusters" in done.stderr
