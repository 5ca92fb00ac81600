"""The eviction experiment: its config is sound, it resumes, and it refuses other settings."""

import dataclasses

import pytest

from configs import eviction as config
from mixattn.evals.longcontext.checkpoint import keep_of
from mixattn.evals.longcontext.policies import grid
from mixattn.evals.longcontext.suite import SuiteGrid
from train.experiments import eviction
from train.experiments.eviction import EvictionExperiment, measure

SMALL = SuiteGrid(("text",), (64,), (), tuple(grid(["h2o", "recent"], ["0.25"], sinks=2)), samples=3, batch=2)


class CountingModel:
    """Nats that depend on text and policy; counts its calls."""

    calls = 0

    def __init__(self, path, scored):
        pass

    def count(self, text):
        return len(text.split())

    def nats(self, task, length, indices, policies):
        type(self).calls += 1
        return [[index + len(policy.name) / 10 for index in indices] for policy in policies]


@pytest.mark.parametrize("variant", ["", "fast"])
def test_every_budget_of_the_config_is_one_that_keep_accepts(variant):
    experiment = config.get_config(variant)
    for section in experiment.sections.values():
        prompt = section.lengths[0] - experiment.scored
        for keep in filter(None, map(keep_of, section.policies)):
            keep.check_rows([prompt], experiment.scored, 30)


def test_a_second_run_asks_nothing_and_gives_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setattr(eviction, "CheckpointModel", CountingModel)
    experiment = EvictionExperiment("somewhere", {"a": SMALL, "b": SMALL})
    rows = measure(experiment, tmp_path, [])
    assert [row["section"] for row in rows] == ["a"] * 3 + ["b"] * 3
    calls = CountingModel.calls
    assert measure(experiment, tmp_path, []) == rows
    assert CountingModel.calls == calls
    with pytest.raises(ValueError, match="holds answers with seed=0, not 1"):
        measure(
            dataclasses.replace(experiment, sections={"a": dataclasses.replace(SMALL, seed=1)}), tmp_path, []
        )


def test_an_unknown_section_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--only names c; there are a"):
        measure(EvictionExperiment("somewhere", {"a": SMALL}), tmp_path, ["c"])
