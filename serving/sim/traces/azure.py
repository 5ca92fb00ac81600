"""Azure LLM inference traces (2023, 2024): CSV of TIMESTAMP, ContextTokens, GeneratedTokens.

Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023 and 2024.
"""

import calendar
import re
from collections.abc import Iterator
from pathlib import Path

from serving.sim.traces.csv_rows import rows
from serving.sim.traces.trace import TraceRow, whole

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(\.\d+)?(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)


def read(path: str | Path) -> Iterator[TraceRow]:
    """Yields the rows. Raises ValueError with line and field of a bad one."""
    for line, row in rows(path, COLUMNS):
        try:
            prompt, output = (whole(row[name], name) for name in COLUMNS[1:])
            at_s = seconds(row["TIMESTAMP"])
        except ValueError as why:
            raise ValueError(f"{path} line {line}: {why}") from why
        yield TraceRow(f"line {line}", at_s, prompt, output, output, columns=row)


def seconds(stamp: str) -> float:
    """Seconds since 1970 of a date with a time of day, in UTC unless it names an offset.

    Raises:
      ValueError: it is none.
    """
    found = STAMP.fullmatch(stamp.strip())
    if found is None:
        raise ValueError(f"TIMESTAMP is {stamp!r}, not like 2023-11-16 18:15:46.6805900")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    known = 1 <= month <= 12 and 1 <= day <= calendar.monthrange(max(year, 1), month)[1]
    if not known or hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"TIMESTAMP is {stamp!r}, which is no time of any day")
    fraction, sign, hours, minutes = found.groups()[6:]
    offset_s = (int(hours) * 3600 + int(minutes) * 60) * (-1 if sign == "-" else 1) if sign else 0
    return calendar.timegm((year, month, day, hour, minute, second)) + float(fraction or 0) - offset_s
