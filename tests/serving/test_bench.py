"""The command that measures: it says what it cannot do, and its figures are files with a recipe."""

import json

import pytest

from configs.demo import get_config
from pallas_kernels import results
from serving import bench


def test_a_part_prints_and_writes_what_it_measured(tmp_path, run_module):
    done = run_module("serving.bench", "--only=memory", "--json", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    written = results.read_csv(tmp_path / "memory.csv")
    assert [r["figure"] for r in written] == [r["figure"] for r in told]
    value = {r["figure"]: r["value"] for r in told}
    assert value["ma_offset over standard"] > 11
    assert value["ma_pairs over standard"] > 7
    of_formula = [r for r in told if r["figure"].endswith("over the formula")]
    assert [r["met"] for r in of_formula] == ["yes"] * 3, "the byte formula, within 2 %"


def test_an_unknown_part_is_one_sentence(run_module):
    done = run_module("serving.bench", "--only=speed")
    assert done.returncode == 2
    assert "--only names speed; there are memory, host," in done.stderr


@pytest.mark.parametrize(("goal", "met"), [(">= 0.5", "yes"), ("< 0.5", "NO"), ("= 0.5", "yes"), ("", "")])
def test_a_figure_says_whether_it_meets_its_goal(goal, met):
    told = bench.row("part", "figure", 0.5, "s", goal=goal)
    assert (told["goal"], told["met"]) == (goal, met)


def test_the_model_that_is_measured_has_the_shape_of_the_demo_s():
    shape = (
        "n_layers",
        "d_model",
        "n_heads",
        "n_kv_heads",
        "head_dim",
        "d_ff",
        "vocab_size",
        "kv_wiring",
        "window",
    )
    demo = get_config().model
    assert [getattr(bench.MODEL, name) for name in shape] == [getattr(demo, name) for name in shape]
