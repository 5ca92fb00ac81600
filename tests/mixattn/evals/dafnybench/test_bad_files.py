"""Every command on every odd file: a verdict or one sentence, never a traceback, never a hang."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mixattn.evals.dafnybench.tasks import OWN
from tests import forked

PROGRAM = (OWN / "power.dfy").read_text()
FILES = {
    "missing": None,
    "folder": None,
    "binary": b"\x7fELF\x02\x01\xff\xfe\x80\x81",
    "10 MB": b"// a comment\n" * 800_000,
    "2 MB": b"// a comment\n" * 160_000,
    "empty": b"",
    "NUL": PROGRAM.replace("{", "{\0", 1).encode(),
    "CR line ends": PROGRAM.replace("\n", "\r").encode(),
    "CRLF line ends": PROGRAM.replace("\n", "\r\n").encode(),
    "byte-order mark": b"\xef\xbb\xbf" + PROGRAM.encode(),
    "UTF-16": PROGRAM.encode("utf-16"),
    "10,000 brackets": b"method M() " + b"{" * 10_000,
    "10,000 parentheses": b"method M() { var x := " + b"(" * 10_000 + b")" * 10_000 + b"; }",
    "comment without end": PROGRAM.encode() + b"/* no end",
    "nested comment without end": PROGRAM.encode() + b"/* /* */",
    "string without end": PROGRAM.encode() + b'const s := "no end\n',
    "verbatim string without end": PROGRAM.encode() + b'const s := @"no end\n',
}
# Exit code and a word of the answer: `dafny check`, `dafnybench strip`, `dafnybench check` of a solution.
SENTENCE = 2
EXPECTED = {
    "missing": [(SENTENCE, "does not exist")] * 3,
    "folder": [(SENTENCE, "is a folder")] * 3,
    "binary": [(SENTENCE, "UTF-8")] * 3,
    "10 MB": [(SENTENCE, "at most")] * 3,
    "2 MB": [(1, "parse"), (0, ""), (1, "changed")],
    "empty": [(1, "empty"), (0, ""), (1, "changed")],
    "NUL": [(1, "parse"), (SENTENCE, "NUL"), (1, "unreadable")],
    "CR line ends": [(0, "verified"), (0, "method"), (0, "verified")],
    "CRLF line ends": [(0, "verified"), (0, "method"), (0, "verified")],
    "byte-order mark": [(0, "verified"), (0, "method"), (0, "verified")],
    "UTF-16": [(SENTENCE, "UTF-8")] * 3,
    "10,000 brackets": [(1, "parse"), (SENTENCE, "deep"), (1, "unreadable")],
    "10,000 parentheses": [(1, "parse"), (SENTENCE, "deep"), (1, "unreadable")],
    "comment without end": [(0, "verified"), (SENTENCE, "comment"), (1, "unreadable")],  # 2.3 reads on
    "nested comment without end": [(0, "verified"), (SENTENCE, "comment"), (1, "unreadable")],
    "string without end": [(1, "parse"), (SENTENCE, "string"), (1, "unreadable")],
    "verbatim string without end": [(1, "parse"), (SENTENCE, "string"), (1, "unreadable")],
}


SOME = ("missing", "binary", "10 MB", "NUL", "CR line ends", "byte-order mark", "10,000 brackets")
SOME += ("comment without end", "string without end")


def written(folder: Path, name: str) -> str:
    path = folder / f"{name.replace(' ', '_')}.dfy"
    if name == "folder":
        path.mkdir()
    elif FILES[name] is not None:
        path.write_bytes(FILES[name])
    return str(path)


def ran(words: list[str]) -> subprocess.CompletedProcess[str]:
    return forked.run("mixattn.evals", *words, timeout_s=120)


@pytest.mark.parametrize(
    "names", [SOME, pytest.param(tuple(FILES), marks=pytest.mark.long)], ids=["some", "all"]
)
def test_every_command_answers_every_odd_file(verify, tmp_path, names):
    original = str(OWN / "power.dfy")
    calls, expected = [], []
    for name in names:
        path = written(tmp_path, name)
        calls += [
            ["dafny", "check", path, "--json"],
            ["dafnybench", "strip", path],
            ["dafnybench", "check", f"--original={original}", f"--solution={path}", "--json"],
        ]
        expected += [(name, *each) for each in EXPECTED[name]]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(ran, calls))
    for words, (name, code, word), done in zip(calls, expected, found, strict=True):
        about = (name, words[:2], done.returncode, done.stdout[-300:], done.stderr[-300:])
        assert done.returncode == code, about
        assert "Traceback" not in done.stderr, about
        if code == SENTENCE:
            assert done.stdout == "", about
            assert done.stderr.startswith("error: "), about
            assert done.stderr.count("\n") == 1, about
            assert word in done.stderr, about
        else:
            assert word in done.stdout, about
            if "--json" in words:
                json.loads(done.stdout)


def test_a_checkout_without_its_files_says_which(verify, tmp_path):
    found = ran(["dafnybench", "run", f"--data={tmp_path}", "--model=ground_truth"])
    assert (found.returncode, "ground_truth" in found.stderr) == (2, True)
    truths = tmp_path / "DafnyBench" / "dataset" / "ground_truth"
    truths.mkdir(parents=True)
    found = ran(["dafnybench", "run", f"--data={tmp_path}", "--model=ground_truth"])
    assert (found.returncode, "holds no .dfy file" in found.stderr) == (2, True)
    (truths / "a.dfy").write_text(PROGRAM)
    found = ran(
        ["dafnybench", "run", f"--data={tmp_path}", "--model=identity", f"--workdir={tmp_path / 'run'}"]
    )
    assert (found.returncode, "hints_removed" in found.stderr) == (2, True)


@pytest.mark.parametrize("model", ["nobody", "noisy@much", "oracle@x", "cheater-nothing"])
def test_a_model_that_does_not_exist_is_named(verify, model, tmp_path):
    found = ran(["dafnybench", "run", f"--model={model}", f"--workdir={tmp_path / 'run'}"])
    assert found.returncode == 2
    assert model in found.stderr
    assert "Traceback" not in found.stderr
