"""The command that measures: it says what it cannot do, and its figures are files with a recipe."""

import json

from pallas_kernels import results


def test_a_part_prints_and_writes_what_it_measured(tmp_path, run_module):
    done = run_module("serving.bench", "--only=memory", "--json", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    written = results.read_csv(tmp_path / "memory.csv")
    assert [r["figure"] for r in written] == [r["figure"] for r in told]
    value = {r["figure"]: r["value"] for r in told}
    assert value["ma_offset: over the formula"] >= 0.98, "the byte formula, within 2 %"
    assert value["ma_offset over standard"] > 11


def test_an_unknown_part_is_one_sentence(run_module):
    done = run_module("serving.bench", "--only=speed")
    assert done.returncode == 2
    assert "--only names speed; there are host," in done.stderr
