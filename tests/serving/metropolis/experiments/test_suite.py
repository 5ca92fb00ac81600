"""Experiments: rows that resume, summaries, and the configs that describe them."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs import metropolis
from pallas_kernels.results import read_csv, read_recipe
from serving.metropolis.experiments.suite import MetropolisExperiment, run
from serving.metropolis.experiments.summary import summarise

RESULTS = Path(__file__).resolve().parents[4] / "results" / "metropolis"


@pytest.mark.parametrize("variant", metropolis.VARIANTS)
def test_every_config_is_valid(variant):
    metropolis.get_config(variant).check()


@pytest.mark.parametrize("name", ["e1", "e2", "e3", "e3_500", "e4", "e4_500", "e5", "e6", "e6_500", "e8"])
def test_the_committed_rows_are_those_of_the_config(name):
    variant = name.upper().replace("_", "-")
    held = json.loads(read_recipe(RESULTS / f"{name}.csv")["config"])
    assert held == json.loads(json.dumps(dataclasses.asdict(metropolis.get_config(variant))))


def test_an_hour_without_calls_has_no_ratios(tmp_path):
    night = MetropolisExperiment(
        "night", hours=(2,), modes=("parallel_sync", "metropolis"), seeds=1, out=str(tmp_path)
    )
    rows = summarise(read_csv(run(night)))
    assert [r["elapsed_s"] for r in rows] == [0, 0]
    assert not any("vs_sync" in r for r in rows)


def test_an_experiment_resumes_with_its_missing_rows_and_refuses_another_recipe(tmp_path):
    one = MetropolisExperiment(
        "one", agents=(4,), modes=("parallel_sync", "metropolis"), seeds=2, out=str(tmp_path)
    )
    path = run(one)
    whole = path.read_text()
    assert len(read_csv(path)) == 4
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    run(one)
    assert sorted(map(str, read_csv(path))) == sorted(map(str, read_csv(run(one))))
    metro = next(r for r in summarise(read_csv(path)) if r["mode"] == "metropolis")
    assert metro["seeds"] == 2
    assert metro["vs_sync"] >= 1
    with pytest.raises(ValueError, match="another recipe"):
        run(MetropolisExperiment("one", agents=(5,), seeds=2, out=str(tmp_path)))
