import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from mixattn.evals.arena.stats.reading import read_votes

BASE = {
    "question_id": "q",
    "model_a": "ant",
    "model_b": "bee",
    "winner": "model_a",
    "judge": "arena_user_1",
    "anony": True,
    "language": "English",
    "tstamp": 1.5,
    "pair_probability": 0.5,
}
GOOD = [
    BASE,
    BASE | {"model_a": "bee", "model_b": "cat", "winner": "tie"},
    BASE | {"winner": "tie (bothbad)"},
    BASE | {"model_a": "cat", "model_b": "dog", "winner": "model_b", "anony": False},
    BASE | {"model_a": "cat", "model_b": "ant", "winner": "model_b", "judge": "arena_user_2"},
]


def write(tmp_path, ending, rows):
    path = tmp_path / f"votes.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    return path


ENDINGS = pytest.mark.parametrize("ending", ["parquet", "jsonl", "json", "csv"])


@ENDINGS
def test_every_format_gives_the_same_votes(tmp_path, ending):
    votes = read_votes(write(tmp_path, ending, GOOD), ["judge", "pair_probability"])
    assert votes.rows == 5
    assert votes.models == ("ant", "bee", "cat")  # dog was met by name only
    assert votes.first.tolist() == [0, 1, 0, 2]
    assert votes.second.tolist() == [1, 2, 1, 0]
    assert votes.outcome.tolist() == [2, 1, 1, 0]
    assert votes.row.tolist() == [1, 2, 3, 5]
    assert votes.columns["judge"].tolist() == ["arena_user_1"] * 3 + ["arena_user_2"]
    assert votes.columns["pair_probability"].tolist() == [0.5] * 4


WRONG = {
    "unknown label": ({"winner": "both_bad"}, "row 2: winner 'both_bad' is not one of"),
    "empty name": ({"model_b": ""}, "row 2: field 'model_b' is empty"),
    "against itself": ({"model_a": "cat"}, "row 2: model_a and model_b are both 'cat'"),
    "zero probability": ({"pair_probability": 0.0}, "row 2: pair_probability is 0, not above 0"),
    "negative probability": ({"pair_probability": -0.5}, "row 2: pair_probability is -0.5"),
    "no number of a probability": ({"pair_probability": float("nan")}, "row 2: pair_probability is nan"),
    "a weight beyond rounding": ({"pair_probability": 1e-300}, "row 2: pair_probability is 1e-300, below"),
    "huge name": ({"model_a": "x" * 100_000}, "row 2: model_a has 100000 characters; at most 500"),
    "a terminal's code": ({"model_b": "a\x1b[2J"}, "row 2: model_b 'a\\x1b[2J' holds a control character"),
}


@ENDINGS
@pytest.mark.parametrize("what", WRONG)
def test_the_wrong_row_is_named(tmp_path, ending, what):
    change, message = WRONG[what]
    rows = [GOOD[0], GOOD[1] | change, *GOOD[2:], BASE | {"winner": "?"}]  # the first wrong row is reported
    with pytest.raises(ValueError, match=r"^row \d") as why:
        read_votes(write(tmp_path, ending, rows))
    assert message in str(why.value)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("name", ["winner", "model_a", "anony", "judge", "language", "tstamp", "question_id"])
def test_a_field_that_other_rows_have_must_not_be_missing(tmp_path, ending, name):
    torn = {key: value for key, value in GOOD[2].items() if key != name}
    with pytest.raises(ValueError, match=f"row 3: field '{name}' is missing"):
        read_votes(write(tmp_path, ending, [*GOOD[:2], torn, *GOOD[3:]]))


@ENDINGS
def test_a_probability_that_is_needed_must_be_there(tmp_path, ending):
    without = [{key: value for key, value in row.items() if key != "pair_probability"} for row in GOOD]
    assert len(read_votes(write(tmp_path, ending, without))) == 4
    with pytest.raises(ValueError, match="'pair_probability' is missing"):
        read_votes(write(tmp_path, ending, without), ["pair_probability"])
    with pytest.raises(ValueError, match="row 2: field 'pair_probability' is missing"):
        read_votes(write(tmp_path, ending, [GOOD[0], without[1], *GOOD[2:]]), ["pair_probability"])


@ENDINGS
def test_no_votes_that_count(tmp_path, ending):
    with pytest.raises(ValueError, match="no votes that count"):
        read_votes(write(tmp_path, ending, [row | {"anony": False} for row in GOOD]))


def test_a_torn_line_is_named(tmp_path):
    path = write(tmp_path, "jsonl", GOOD)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"row 5: the line is not valid JSON; the file ends in the middle"):
        read_votes(path)
    path = write(tmp_path, "json", GOOD)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"row 5: the JSON list is torn"):
        read_votes(path)
    path = write(tmp_path, "csv", GOOD)
    path.write_text(path.read_text().replace("q,cat,dog", "cat,dog"))
    with pytest.raises(ValueError, match=r"row 4: 8 fields, expected 9"):
        read_votes(path)
    path = write(tmp_path, "parquet", GOOD)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a whole parquet file"):
        read_votes(path)


def test_odd_values_are_refused_or_kept_as_they_are(tmp_path):
    with pytest.raises(ValueError, match="row 2: field 'model_a' is 5, not text"):
        read_votes(write(tmp_path, "jsonl", [GOOD[0], GOOD[1] | {"model_a": 5}]))
    with pytest.raises(ValueError, match="row 2: anony is 'yes', neither true nor false"):
        read_votes(write(tmp_path, "csv", [GOOD[0], GOOD[1] | {"anony": "yes"}]))
    named = [row | {"model_a": "null"} for row in GOOD[:1]]
    assert read_votes(write(tmp_path, "csv", named)).models == ("bee", "null")
    mixed = [GOOD[0] | {"question_id": 5}, GOOD[1] | {"question_id": "x"}]
    assert len(read_votes(write(tmp_path, "jsonl", mixed))) == 2
    with pytest.raises(ValueError, match=r"ends in '.txt'"):
        read_votes(tmp_path / "votes.txt")


def test_a_long_conversation_in_a_line_is_no_obstacle(tmp_path):
    rows = [row | {"conversation_a": [{"role": "user", "content": "x" * 9_000_000}]} for row in GOOD[:3]]
    assert len(read_votes(write(tmp_path, "jsonl", rows))) == 3


@ENDINGS
@pytest.mark.parametrize("winner", ["Model_A", "TIE", " model_a", "bothbad", "left", "1"])
def test_other_spellings_of_a_winner_are_no_tie(tmp_path, ending, winner):
    with pytest.raises(ValueError, match=r"row 2: winner .* is not one of model_a, model_b, tie"):
        read_votes(write(tmp_path, ending, [GOOD[0], GOOD[1] | {"winner": winner}]))


@ENDINGS
def test_blank_names_are_empty_and_odd_ones_stay_as_they_are(tmp_path, ending):
    with pytest.raises(ValueError, match="row 2: field 'model_b' is empty"):
        read_votes(write(tmp_path, ending, [GOOD[0], GOOD[1] | {"model_b": "  "}]))
    odd = "моделÿ-🤖\u200f \u0301"
    assert odd in read_votes(write(tmp_path, ending, [GOOD[0], GOOD[1] | {"model_b": odd}])).models


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("change", [{"question_id": 10**30}, {"tstamp": 10**400}, {"tstamp": -(10**25)}])
def test_huge_numbers_beside_the_vote_do_no_harm(tmp_path, ending, change):
    assert len(read_votes(write(tmp_path, ending, [GOOD[0], GOOD[1] | change]))) == 2


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_half_a_character_and_endless_nesting_name_their_row(tmp_path, ending):
    with pytest.raises(ValueError, match="row 2: field 'model_a' holds half a character"):
        read_votes(write(tmp_path, ending, [GOOD[0], GOOD[1] | {"model_a": "\ud800x"}]))
    path = write(tmp_path, ending, GOOD[:1])
    deep = '{"model_a":' * 50_000
    path.write_text(path.read_text() + deep if ending == "jsonl" else f"[{json.dumps(GOOD[0])},{deep}")
    with pytest.raises(ValueError, match="row 2: the"):
        read_votes(path)


@ENDINGS
def test_empty_files_and_files_of_nothing_are_refused(tmp_path, ending):
    for content in (b"", b"\n \n", bytes(range(256)), b"\x00" * 99, "ant".encode("utf-16")):
        path = tmp_path / f"votes.{ending}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"row 1|no votes that count|not a whole|UTF-8|CSV"):
            read_votes(path)
    with pytest.raises(ValueError, match="is not a file"):
        read_votes(tmp_path / f"none.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        read_votes(tmp_path / f"folder.{ending}")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [1]}, "row 1: field 'model_a' is missing"),
        (
            {"model_a": ["a"], "model_b": ["b"], "winner": [{"x": 1}]},
            "row 1: field 'winner' is of type struct",
        ),
        (
            {"model_a": [b"a"], "model_b": ["b"], "winner": ["tie"]},
            "row 1: field 'model_a' is of type binary",
        ),
        ({"model_a": [5], "model_b": ["b"], "winner": ["tie"]}, "row 1: field 'model_a' is of type int64"),
    ],
)
def test_parquet_with_other_columns_or_types_is_refused(tmp_path, columns, said):
    path = tmp_path / "votes.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=said):
        read_votes(path)


def test_a_damaged_parquet_file_is_read_or_refused_and_nothing_else(tmp_path):
    whole = write(tmp_path, "parquet", GOOD).read_bytes()
    path = tmp_path / "damaged.parquet"
    refused = 0
    for at in range(4, len(whole), 29):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_votes(path)
        except ValueError:
            refused += 1
    assert refused > 10
    for cut in (0, 3, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"not a whole parquet file|it is empty"):
            read_votes(path)
