"""A table of runs as a file: a row each, what is the same of all said once, above them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pallas_kernels import results


def write_csv(path: Path, rows: list[dict[str, Any]], *, config: Any, **facts: Any) -> None:
    """Writes one row a run, which says where and with what it ran (`results.surroundings`).

    Raises:
      ValueError: there is no row.
    """
    if not rows:
        raise ValueError(f"no run is finished; there is nothing to write to {path}")
    same = {k: rows[0][k] for k in results.SURROUNDINGS if all(row.get(k) == rows[0].get(k) for row in rows)}
    short = [{k: _short(v) for k, v in row.items() if k not in same} for row in rows]
    results.write_csv(path, short, **same, **facts, config=json.dumps(dataclasses.asdict(config)))


def _short(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value
