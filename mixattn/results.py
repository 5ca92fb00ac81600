"""A result is a file with its recipe: a CSV whose head says how it was made, on what, with which versions and
commit."""

import csv
import io
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixattn import files

VIRTUAL = "none (virtual time)"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]], **recipe: Any) -> None:
    """Writes rows (the columns are those of all rows, in order of appearance) under `# key: value` lines.

    What `recipe` does not say of the surroundings is asked for; the device, of jax.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    text.writelines(f"# {key}: {value}\n" for key, value in (recipe | surroundings(**recipe)).items())
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(Path(path), text.getvalue())
    print(f"wrote {path}")


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows, without the recipe above them."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def surroundings(**known: Any) -> dict[str, str]:
    """Where and with what this process runs; a known `device` is taken as it is, and jax left alone."""
    return {
        "device": str(known["device"]) if "device" in known else device(),
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in _PACKAGES)]
        ),
        "commit": commit(),
    }


def device() -> str:
    """What jax computes on, the processor and how many of its cores this process may use."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{jax.devices()[0].device_kind}, {processor()}, {cores} core{'s' * (cores != 1)}"


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
