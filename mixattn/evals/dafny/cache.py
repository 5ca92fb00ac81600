"""Remembers verdicts on disk by program, flags and versions."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from mixattn.evals.dafny.protocol import UNSURE, Problem, Verification, Verify
from mixattn.evals.dafny.tool import home
from mixattn.tools import files


class Remember:
    """A `Verify` that asks `verify` about each program once.

    A time-out of a first try is remembered, but does not answer for a second one. A crash is remembered when
    it came twice.

    Args:
      settings: everything else that a verdict depends on: versions, limits.
      folder: default: `verdicts` in the verifier's home.
    """

    def __init__(self, verify: Verify, settings: str, folder: Path | None = None):
        self._verify, self._settings = verify, settings
        self._folder = folder or home() / "verdicts"

    def __call__(self, program: str, *, flags: tuple[str, ...] = (), tries: int = 1) -> Verification:
        path = self._path(program, flags)
        known = _read(path)
        if known is not None and (known.verdict not in UNSURE or known.tries >= tries):
            return known
        found = self._verify(program, flags=flags, tries=tries)
        if found.verdict != "crash" or found.tries > 1:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(asdict(found)))
        return found

    def _path(self, program: str, flags: tuple[str, ...]) -> Path:
        key = json.dumps([program, flags, self._settings])
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / name[:2] / f"{name}.json"


def _read(path: Path) -> Verification | None:
    """A remembered verification; None if there is none that can be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        errors = tuple(Problem(**problem) for problem in fields.pop("errors"))
        return Verification(errors=errors, procedures=tuple(fields.pop("procedures")), **fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
