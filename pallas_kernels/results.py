"""A result is a file with its recipe: a CSV whose head says how it was made, on what, with which versions and
commit. Every room writes it; it lies in the lowest, and asks jax only where nobody names the device.
"""

import contextlib
import csv
import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VIRTUAL = "none (virtual time)"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def write_csv(
    path: str | Path, rows: Sequence[dict[str, Any]], *, quiet: bool = False, **recipe: Any
) -> None:
    """Writes rows (the columns are those of all rows, in order of appearance) under `# key: value` lines.

    What neither `recipe` nor a column says of the surroundings is asked for. The file is whole or absent.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    head = recipe | surroundings(but=recipe.keys() | set(columns))
    text.writelines(f"# {key}: {value}\n" for key, value in head.items())
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text.getvalue(), encoding="utf-8", newline="")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    if not quiet:
        print(f"wrote {path}", file=sys.stderr)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows, without the recipe above them."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def read_recipe(path: str | Path) -> dict[str, str]:
    """The `# key: value` lines above the rows."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    pairs = (line[2:].partition(": ") for line in lines if line.startswith("# "))
    return {key: value for key, _, value in pairs}


def surroundings(but: Collection[str] = ()) -> dict[str, str]:
    """Where and with what this process runs; what is named in `but` is not asked for."""
    return {what: ask() for what, ask in SURROUNDINGS.items() if what not in but}


def device() -> str:
    """What jax computes on, the processor, and how many of its cores XLA uses here."""
    import jax

    kind, count = jax.devices()[0].device_kind, jax.device_count()
    kind = f"{count} x {kind}" if count > 1 else kind
    return f"{kind}, {processor()}, {cores()} core{'s' * (cores() != 1)}"


def cores() -> int:
    """Cores that this process may use, or fewer if NPROC tells XLA so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("NPROC", "")
    return min(allowed, int(told)) if told.isdigit() and int(told) else allowed


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")


def versions() -> str:
    """Of Python and of what is installed of LIBRARIES."""
    found = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def commit() -> str:
    """The commit checked out, `+` behind it if more than results differs from it; "unknown" without one."""
    try:
        differs = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return _git("rev-parse", "--short=12", "HEAD") + "+" * bool(differs)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    git = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


SURROUNDINGS: dict[str, Callable[[], str]] = {"device": device, "versions": versions, "commit": commit}
