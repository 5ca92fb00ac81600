"""`python -m mixattn.spec`: the memory table, by formula and on live arrays, and its refusals."""

import json

import pytest

from tests import forked

TABLE = {  # pattern: full owners, sliding owners, MiB flat, MiB, at 32,000 tokens
    "standard": (24, 0, 1125.0, 1125.0),
    "swa": (0, 24, 1125.0, 36.0),
    "ma_offset": (1, 8, 421.9, 58.9),
    "ma_pairs": (2, 8, 468.8, 105.8),
    "ma_offset_slideshare": (1, 4, 234.4, 52.9),
    "ma_pairs_slideshare": (2, 4, 281.2, 99.8),
    "ma_noshare_1": (1, 10, 515.6, 61.9),
}


def table(*flags):
    """The table as the command prints it."""
    return json.loads(forked.run("mixattn.spec", "--table", "--json", *flags).stdout)


def test_the_memory_table_of_the_paper_is_reproduced():
    rows = {row["pattern"]: row for row in table()}
    for name, (full, sliding, flat, windowed) in TABLE.items():
        row = rows[name]
        assert (row["full_owners"], row["sliding_owners"]) == (full, sliding)
        assert round(row["bytes_without_windows"] / 2**20, 1) == flat
        assert round(row["bytes"] / 2**20, 1) == windowed


@pytest.mark.parametrize("tokens", [2000, pytest.param(32_000, marks=pytest.mark.long)])
def test_live_cache_arrays_agree_to_the_byte(tokens):
    formula, live = table(f"--tokens={tokens}"), table(f"--tokens={tokens}", "--live")
    assert {row["counted_on"] for row in live} == {"live cache arrays"}
    for one, other in zip(formula, live, strict=True):
        assert one | {"counted_on": ""} == other | {"counted_on": ""}


def test_the_picture_names_every_layer_and_its_owner(run_module):
    done = run_module("mixattn.spec", "--wiring=0s_0s_2_3s_3s_2", "--window=64")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "0s_0s_2_3s_3s_2"
    assert "reads layer 2" in next(line for line in lines if line.startswith("   5  full"))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--wiring=0_0s"], "sliding layer 1 reads the K/V of full layer 0"),
        (["--pattern=ma", "--n_layers=3"], "pattern ma needs at least 4 layers, not 3"),
        (["--dtype=float99"], "dtype is 'float99'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run_module, flags, why):
    done = run_module("mixattn.spec", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert why in done.stderr
