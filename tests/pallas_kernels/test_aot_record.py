"""Compiler statistics of every kernel, against the limits and the record."""

import json
from pathlib import Path

import pytest

from pallas_kernels import aot, aot_record, results

RECORD = Path(__file__).resolve().parents[2] / "results" / "kernels_aot.csv"


@pytest.fixture(scope="session")
def compiled():
    """Every program compiled once, in a process whose compilers dump: rows by (chip, program)."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "pallas_kernels.aot_record", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=RECORD.parents[1])
    assert done.returncode == 0, done.stderr
    return {(row["chip"], row["program"]): row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.aot
@pytest.mark.parametrize(("chip", "name"), aot_record.all_programs())
def test_every_program_compiles_within_its_chip_and_no_worse_than_recorded(chip, name, request):
    """No spills and wgmma on Hopper; on TPU bundles, spills and VMEM; all within `aot_record.MARGIN`."""
    if why := aot.missing(chip):
        pytest.skip(why)
    row = request.getfixturevalue("compiled")[chip, name]
    assert list(aot_record.regressions([row], results.read_csv(RECORD))) == []


ROW = dict.fromkeys(aot_record.COLUMNS, "") | {
    "program": "decode",
    "chip": "h100",
    "kernels": 1,
    "wgmma": 12,
    "registers": 200,
    "spill_bytes": 0,
    "shared_bytes": 1000,
    "temporary_bytes": 0,
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"registers": 216}, None),
        ({"registers": 217}, "registers is 217, the record says 200"),
        ({"spill_bytes": 8}, "spill_bytes is 8, the chip allows 0"),
        ({"wgmma": 0}, "no wgmma instruction"),
        ({"shared_bytes": 1001}, "shared_bytes is 1001, the record says 1000"),
        ({"registers": ""}, "registers is not reported, the record says 200"),
        ({"program": "new"}, "not in the record"),
    ],
)
def test_only_what_is_worse_than_the_record_is_reported(change, sentence):
    before = [{name: str(value) for name, value in ROW.items()}]
    said = list(aot_record.regressions([ROW | change], before))
    assert any(sentence in words for words in said) if sentence else said == []


def test_the_record_holds_every_program():
    assert [(row["chip"], row["program"]) for row in results.read_csv(RECORD)] == aot_record.all_programs()


def test_what_was_not_measured_again_stays_in_the_record(tmp_path):
    path = tmp_path / "record.csv"
    results.write_csv(path, [ROW | {"chip": "v5e"}, ROW, ROW | {"program": "of old"}])
    kept = aot_record.merge_rows([ROW | {"registers": 100}], path)
    assert [(row["chip"], str(row["registers"])) for row in kept] == [("v5e", "200"), ("h100", "100")]


def test_bundles_are_those_of_the_pallas_kernels_alone(tmp_path):
    """From files as libtpu writes them: a kernel, a fusion beside it, and the program that quotes both."""
    call = '%attend.1 = custom-call(), custom_call_target="tpu_custom_call"'
    files = {
        "17-attend.1-71-schedule-analysis_final_bundles.txt": f"total scheduled bundles:    40\n{call}",
        "17-attend.1-72-final_bundles.txt": "{ vst [vmem:[#allocation3_spill]] }\n{ vst [vmem:[%s]] }",
        "17-attend.1-51-pre-finalize-registers-and-allocations.txt": (
            "#a [space=vmem, size = 0x10, scoped, tag]\n#b [space=vmem, size = 0x20, scoped]\n"
        ),
        "18-fusion-62-schedule-analysis_final_bundles.txt": "total scheduled bundles:    7\n",
        "19-TLP-72-schedule-analysis_final_bundles.txt": f"total scheduled bundles:    9\n{call}",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert aot_record.read_tpu_dump(tmp_path) == {
        "kernels": 1,
        "bundles": 40,
        "spills": 1,
        "scoped_vmem_bytes": 48,
    }
