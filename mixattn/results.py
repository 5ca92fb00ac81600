"""A result is a file with its recipe: a CSV whose head says config, seed, device, cores, versions and
commit."""

import csv
import io
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixattn.hf.store import write_text

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def write_csv(path: str | Path, rows: list[dict[str, Any]], **recipe: Any) -> None:
    """Writes rows (the columns are those of all rows, in order of appearance) under `# key: value` lines."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    for key, value in (recipe | surroundings()).items():
        text.write(f"# {key}: {value}\n")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), text.getvalue())
    print(f"wrote {path}")


def surroundings() -> dict[str, Any]:
    """Where and with what this process runs."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": f"{jax.devices()[0].device_kind}, {processor()}, {cores} core{'s' * (cores != 1)}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in _PACKAGES)]
        ),
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def commit() -> str:
    """The checked-out commit, `+` behind it if files differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
