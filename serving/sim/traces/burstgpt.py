"""BurstGPT traces: CSV of Timestamp (seconds), Model, Request tokens, Response tokens, ..., Log Type.

A response of 0 tokens is a request that failed at the time; it is dropped and counted. Later releases have a
Session ID, which then names the client unless another column is asked for; without one, it is the Model.

Source: github.com/HPMLL/BurstGPT (arXiv 2401.17644).
"""

from collections.abc import Iterator
from pathlib import Path

from serving.sim.traces.csv_rows import rows
from serving.sim.traces.trace import TraceRow, number, whole

COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens")


def read(path: str | Path) -> Iterator[TraceRow]:
    """Yields the rows. Raises ValueError with line and field of a bad one."""
    for line, row in rows(path, COLUMNS):
        try:
            at_s = number(row["Timestamp"], "Timestamp")
            prompt, output = (whole(row[name], name) for name in COLUMNS[2:])
        except ValueError as why:
            raise ValueError(f"{path} line {line}: {why}") from why
        yield TraceRow(f"line {line}", at_s, prompt, output, output, columns=row)
