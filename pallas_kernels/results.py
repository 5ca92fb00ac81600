"""Result files: a CSV under a header that names command, config, seed, device, versions and commit.

The one writer and reader of all packages. It imports jax only to name the device.
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

    Device, versions and commit are added unless `recipe` or a column names them. The file is written whole.
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
    """Device, versions and commit of this process, except those named in `but`."""
    return {name: find() for name, find in SURROUNDINGS.items() if name not in but}


def device() -> str:
    """The jax device, the processor, and the number of cores that XLA uses."""
    import jax

    kind, count = jax.devices()[0].device_kind, jax.device_count()
    kind = f"{count} x {kind}" if count > 1 else kind
    return f"{kind}, {processor()}, {cores()} core{'s' * (cores() != 1)}"


def cores() -> int:
    """Cores that this process may use, or NPROC if that is smaller, as XLA counts them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    nproc = os.environ.get("NPROC", "")
    return min(allowed, int(nproc)) if nproc.isdigit() and int(nproc) else allowed


def processor() -> str:
    """The processor's name where the system reports it, else "unknown"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")


def versions() -> str:
    """Versions of Python and of the installed LIBRARIES."""
    found = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def commit() -> str:
    """The commit, with `+` if tracked files outside results/ differ from it; "unknown" outside a checkout."""
    try:
        differs = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return _git("rev-parse", "--short=12", "HEAD") + "+" * bool(differs)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    git = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


SURROUNDINGS: dict[str, Callable[[], str]] = {"device": device, "versions": versions, "commit": commit}
