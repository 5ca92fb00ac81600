"""The command that measures: it says what it cannot do, and its figures are files with a recipe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.demo import get_config
from pallas_kernels import results
from serving import bench

ROOT = Path(__file__).resolve().parents[2]


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


INTERRUPTED = """
import sys
from serving import bench
from serving.bench import __main__ as command
def part(size):
    yield bench.row("http", "first", 1.0, "s")
    yield bench.row("http", "second", 2.0, "s")
    raise KeyboardInterrupt
command.PARTS["http"] = part
command.cli.run(command.main)
"""


def test_figures_that_take_long_are_on_disk_one_by_one(tmp_path):
    asked = [sys.executable, "-c", INTERRUPTED, "--only=http", f"--out={tmp_path}"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert [r["figure"] for r in results.read_csv(tmp_path / "http.csv")] == ["first", "second"]
    assert results.read_recipe(tmp_path / "http.csv")["unfinished"] == "2", "it says that it is not whole"
    assert "first: 1 s" in done.stderr


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
