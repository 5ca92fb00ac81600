"""Loads CloverBench from a checkout of github.com/ChuyueSun/Clover. Nothing of it is part of this project."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixattn.evals.clover.method import Method, read_method
from mixattn.evals.clover.triple import Kind, Triple
from mixattn.evals.dafny.dialect import level_for, rewrite
from mixattn.evals.dafny.lexer import lex
from mixattn.evals.dafny.protocol import Verify

# Kind -> files of (code, annotation, docstring), below the folder of that kind; {n} is the program's name.
_BENCH = Path("dataset/CloverBench")
_RIGHT = "textbook_algo/{n}/{n}_strong.dfy", "textbook_algo/{n}/{n}_spec.txt"
_WRONG: dict[Kind, tuple[str, str]] = {
    "C1": (_RIGHT[0], "adversarial_incorrect/C1/{n}/{n}_C2.txt"),
    "C2": ("adversarial_incorrect/C2/{n}/{n}_C1.dfy", _RIGHT[1]),
    "C3": ("adversarial_incorrect/C3/{n}/{n}_C1.dfy", "adversarial_incorrect/C3/{n}/{n}_doc.txt"),
    "C6": ("adversarial_incorrect/C6/{n}/{n}.dfy", _RIGHT[1]),
}
_TESTS = "textbook_algo_unit_tests/{n}/{n}_tests.dfy"
MAX_FILE_BYTES = 1 << 20


def load(checkout: str | Path) -> tuple[list[Triple], list[str]]:
    """The triples that could be read, right ones first, and a sentence on each that could not.

    Raises:
      ValueError: the path is no checkout; the sentence says what is missing.
    """
    root = Path(checkout) / _BENCH
    if not Path(checkout).exists():
        raise ValueError(f"--data={checkout} does not exist; give a checkout of CloverBench, or `own`")
    for folder in ("textbook_algo", "textbook_algo_unit_tests", "adversarial_incorrect"):
        if not (root / folder).is_dir():
            raise ValueError(f"--data={checkout} has no folder {_BENCH / folder}")
    names = sorted(p.name for p in (root / "textbook_algo").iterdir() if p.is_dir())
    if not names:
        raise ValueError(f"--data={checkout} has no programs in {_BENCH / 'textbook_algo'}")
    triples, troubles = [], []
    for kind, files in {"right": _RIGHT, **_WRONG}.items():
        for name in names:
            try:
                triples.append(_triple(root, name, kind, *files))
            except (ValueError, OSError) as why:
                troubles.append(f"{kind} {name}: {why}")
    return triples, troubles


def in_dialect(triples: Sequence[Triple], verify: Verify) -> list[Triple]:
    """The triples in the words of the verifier at hand; all of a program as its right one needs it."""
    levels = {t.name: level_for(t.program(), verify) for t in triples if t.kind == "right"}
    return [_rewritten(t, levels.get(t.name, 0)) for t in triples]


def _rewritten(triple: Triple, level: int) -> Triple:
    """Tests are rewritten in any case: they use newer words than the programs that they test."""
    tests = rewrite(triple.tests, max(level, 1))
    if level == 0:
        return replace(triple, tests=tests)
    method = read_method(rewrite(triple.program(), level), triple.method.name)
    return replace(triple, method=method, tests=tests)


def _triple(root: Path, name: str, kind: Kind, program: str, docstring: str) -> Triple:
    method = read_method(_text(root / program.format(n=name)))
    words = " ".join(_text(root / docstring.format(n=name)).split())
    return Triple(name, kind, method, words, _tests(root / _TESTS.format(n=name), method))


def _tests(path: Path, method: Method) -> str:
    """The test file without the method under test and without what else its program declares."""
    if not path.exists():
        return ""
    text = _text(path)
    rest = read_method(text, method.name).others
    declared = [token.text for token in lex(method.others)]
    found = [token.text for token in lex(rest)]
    if declared and found[: len(declared)] == declared:
        return rest[lex(rest)[len(declared)].start :]
    return rest


def _text(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"{path.name} is missing")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{path.name} has {size} bytes; at most {MAX_FILE_BYTES} are read")
    return path.read_bytes().decode("utf-8-sig")
