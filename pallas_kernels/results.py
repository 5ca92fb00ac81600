"""A result is a file with its recipe: a CSV below comment lines that say what it was made on."""

import csv
import datetime
import os
import platform
import subprocess
from pathlib import Path

import jax


def write(path: Path, rows: list[dict], **facts) -> None:
    """Writes rows, whole or not at all. Columns are those of the first row; `facts` come above them."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    facts |= {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "commit": asked.stdout.strip() or "unknown",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in facts.items())
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(draft, path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `write` made."""
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
