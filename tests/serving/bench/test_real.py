"""The real-model benchmark: what it computes from times, that it goes on where it stopped, and its ratios."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from serving.bench.real import measuring, table
from serving.bench.real.cases import CASES, Case, prompts
from serving.bench.real.sides import SIDES, RealSide

ROOT = Path(__file__).resolve().parents[3]
TINY = Case("tiny", 2, 3, 4)
FILES = {"folder": "f", "gguf": "g", "llama": "l", "programs": "p"}
FAKE = """
import sys
sys.path.insert(0, {parity!r})
from real_peer import TokenTimes, serve

def load(about):
    if about["gguf"] == "broken":
        raise ValueError("no such file")
    return about, "fake 1"

def run(model, prompts, new):
    noted = TokenTimes(len(prompts))
    for step in range(new):
        for row, ids in enumerate(prompts):
            noted.add(row, [ids[0] + step])
    return noted.answer()

print("a library greets")
serve(load, run)
"""


class FakeSide(RealSide):
    def __init__(self, name: str, script: Path, **more):
        super().__init__(name, "", str(script), {"gguf": "gguf"}, **more)

    def command(self, peers, cores):
        return [sys.executable, self.script]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(textwrap.dedent(FAKE.format(parity=str(ROOT / "tests" / "parity"))))
    return path


def measure(script, kept, rounds, files=FILES, enough=lambda: False):
    said = []
    sides = [FakeSide("a", script), FakeSide("b", script)]
    ids = list(range(1000))
    options = {
        "rounds": rounds,
        "ids": ids,
        "peers": Path("none"),
        "files": files,
        "enough": enough,
        "say": said.append,
    }
    measuring.measure(TINY, 1, sides, kept, **options)
    return said


def test_sides_take_turns_and_a_second_call_does_only_what_is_missing(script, tmp_path):
    path = tmp_path / "kept.jsonl"
    measure(script, measuring.Measurements(path), 1)
    measure(script, measuring.Measurements(path), 3)
    kept = measuring.Measurements(path)
    order = [(r["side"], r["round"]) for r in kept.rows if r["kind"] == "round"]
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    first = [r["outputs"][0] for r in kept.rounds("a", "tiny", 1)]
    assert len(set(first)) == 3, "no round has the prompts of another"


def test_a_line_that_was_cut_off_is_left_out(script, tmp_path):
    path = tmp_path / "kept.jsonl"
    measure(script, measuring.Measurements(path), 1)
    path.write_text(path.read_text()[:-20])
    assert len(measuring.Measurements(path).rounds("b", "tiny", 1)) == 0


def test_a_side_that_cannot_be_loaded_is_named_and_left_out(script, tmp_path):
    kept = measuring.Measurements(tmp_path / "kept.jsonl")
    said = measure(script, kept, 1, files=FILES | {"gguf": "broken"})
    assert "a cannot be loaded: ValueError: no such file" in said
    assert [r["value"] for r in table.table(kept) if "failed" in r["figure"]] == [0, 0]


def test_nothing_is_started_when_time_is_up(script, tmp_path):
    kept = measuring.Measurements(tmp_path / "kept.jsonl")
    assert "time is up" in measure(script, kept, 5, enough=lambda: True)[-1]
    assert not kept.rounds("a", "tiny", 1)


def test_figures_of_an_answer():
    """First tokens at 1 and 3 s, then a token each second until the first request ends at 6 s."""
    answer = {"times": [[1, 4, 5, 6], [3, 4, 5, 6]]}
    assert measuring.figures(TINY, answer) == {"first_s": 2, "step_s": 1, "tok_per_s": 8 / 6}
    assert measuring.figures(TINY, {"times": [[2.0], [2.0]]})["step_s"] is None


def test_ratios_say_how_many_times_as_fast_ours_is(tmp_path):
    kept = measuring.Measurements(tmp_path / "kept.jsonl")
    for side, step_s, rate in ((table.INT8, 0.02, 300), (table.FLOAT, 0.05, 100)):
        about = {"side": side, "case": "sixteen", "cores": 2, "kind": "round", "round": 0}
        kept.add(about | {"first_s": 1.0, "step_s": step_s, "tok_per_s": rate})
    wanted = table.RatioGoal(2, "sixteen", "step_s", table.INT8, table.FLOAT, "")
    assert table.ratio(kept, wanted) == pytest.approx(2.5)
    assert table.ratio(kept, wanted._replace(figure="tok_per_s")) == pytest.approx(3)
    assert table.ratio(kept, wanted._replace(theirs="vLLM, float32")) is None
    met = [r for r in table.table(kept) if r["goal"] == ">= 2.3"]
    assert [r["met"] for r in met] == ["yes"]


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_prompts_have_their_length_and_begin_differently(case):
    ids = list(range(150_000))
    all_rounds = [tuple(p) for n in range(4) for p in prompts(case, n, ids)]
    assert {len(p) for p in all_rounds} == {case.prompt_tok}
    assert len({p[0] for p in all_rounds}) == 4 * case.requests


def test_every_sides_script_is_there_and_its_query_is_json():
    for side in SIDES.values():
        assert (ROOT / "tests" / "parity" / side.script).exists()
        json.dumps(side.asked(CASES["one"], 2, FILES))
