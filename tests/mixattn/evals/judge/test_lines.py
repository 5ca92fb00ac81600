"""Files of JSON lines: a write killed at any byte costs at most the line under way."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixattn.evals.judge.lines import LineLog, read_existing_rows, read_rows

ROWS = st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=6), max_size=3), min_size=1, max_size=4)


@given(rows=ROWS, data=st.data())
def test_a_file_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("lines") / "log.jsonl"
    with LineLog(path) as log:
        for row in rows:
            log.append(row)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    if content[cut : cut + 1] == b"\n":  # only the newline is lost
        whole += 1
    with LineLog(path) as log:
        assert read_rows(path) == rows[:whole]
        log.append({"next": 1})
    assert read_rows(path) == [*rows[:whole], {"next": 1}]


def test_a_torn_line_in_the_middle_is_named_and_not_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with LineLog(path):
        pass
    with pytest.raises(ValueError, match="line 2, is torn"):
        read_rows(path)
    path.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(ValueError, match="line 3, is a list"):
        read_rows(path)


def test_a_second_run_may_not_write_to_the_same_file(tmp_path):
    with LineLog(tmp_path / "log.jsonl"), pytest.raises(ValueError, match="another run"):
        LineLog(tmp_path / "log.jsonl")


def test_a_json_list_is_read_as_rows(tmp_path):
    path = tmp_path / "votes.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}]))
    assert read_existing_rows(path) == [{"a": 1}, {"a": 2}]
    path.write_text('[{"a": 1}, 2]')
    with pytest.raises(ValueError, match="row 2, is a int"):
        read_existing_rows(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no rows"):
        read_existing_rows(path)
