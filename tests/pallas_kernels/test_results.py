"""A result carries its recipe: what is not told is asked for, what is told is left alone; half is nothing."""

import subprocess

import pytest

from pallas_kernels import results


def facts(path):
    return dict(line[2:].split(": ", 1) for line in path.read_text().splitlines() if line.startswith("# "))


def test_what_neither_the_recipe_nor_a_column_says_is_asked_for(tmp_path):
    results.write_csv(tmp_path / "a.csv", [{"x": 1, "commit": "abc"}, {"y": 2}], device="abacus", seed=0)
    assert facts(tmp_path / "a.csv").keys() == {"device", "seed", "versions"}
    assert results.read_csv(tmp_path / "a.csv") == [
        {"x": "1", "commit": "abc", "y": ""},
        {"x": "", "commit": "", "y": "2"},
    ]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    results.write_csv(path, [{"x": 1}], device="abacus")
    monkeypatch.setattr("pallas_kernels.results.os.replace", _full)
    with pytest.raises(OSError, match="full"):
        results.write_csv(path, [{"x": 2}], device="abacus")
    assert results.read_csv(path) == [{"x": "1"}]
    assert list(tmp_path.iterdir()) == [path]


def _full(*paths):
    raise OSError("full")


def test_cores_are_those_that_xla_may_use(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    allowed = results.cores()
    monkeypatch.setenv("NPROC", "1")
    assert results.cores() == 1
    monkeypatch.setenv("NPROC", "999")
    assert results.cores() == allowed


def test_a_commit_is_marked_where_sources_differ_and_not_for_results(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "room" / "results.py"))
    (tmp_path / "room").mkdir()
    (tmp_path / "results").mkdir()
    assert results.commit() == "unknown"
    for name in ("room/a.py", "results/a.csv"):
        (tmp_path / name).write_text("1")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = results.commit()
    (tmp_path / "results" / "a.csv").write_text("2")
    assert results.commit() == clean
    (tmp_path / "room" / "a.py").write_text("2")
    assert results.commit() == clean + "+"
