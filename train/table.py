"""Results as files that carry their recipe: a CSV whose first lines say how it came about."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from mixattn import files

_ENVIRONMENT = ("device", "cores", "nproc", "python", "commit", "jax", "jaxlib", "flax", "optax")
_DROPPED = ("orbax-checkpoint", "grain", "tokenizers", "numpy")


def write_csv(path: Path, rows: list[dict[str, Any]], *, config: Any, **facts: Any) -> None:
    """Writes one row a run below a header of `# name: value` lines; equal environments are said once.

    Raises:
      ValueError: there is no row.
    """
    if not rows:
        raise ValueError(f"no run is finished; there is nothing to write to {path}")
    same = {k: rows[0][k] for k in _ENVIRONMENT if all(row.get(k) == rows[0].get(k) for row in rows)}
    columns = [k for k in rows[0] if k not in same and k not in _DROPPED]
    text = io.StringIO()
    for name, value in {**same, **facts, "config": json.dumps(dataclasses.asdict(config))}.items():
        text.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    files.write_text(path, text.getvalue())
