"""Mooncake traces: JSON lines of timestamp (milliseconds), input_length, output_length, hash_ids.

Each hash id names 512 tokens of the prompt together with all before them; the last block may be partial.
Equal ids at the same place are shared prefixes. Tokens beyond the last id are the request's own.

Source: github.com/kvcache-ai/Mooncake (arXiv 2407.00079).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.sim.synthetic_tokens import TokenSegment
from serving.sim.traces.trace import TraceRow, lines, number, whole

BLOCK_TOK = 512
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


def read(path: str | Path) -> Iterator[TraceRow]:
    """Yields the rows. Raises ValueError with line and field of a bad one."""
    for line, text in lines(path):
        try:
            yield _row(json.loads(text), f"line {line}")
        except (ValueError, RecursionError) as why:
            raise ValueError(f"{path} line {line}: {why}") from why


def _row(row: Any, where: str) -> TraceRow:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if missing := [name for name in FIELDS if name not in row]:
        raise ValueError(f"no field {', '.join(missing)}")
    at_s = number(row["timestamp"], "timestamp") / 1000
    prompt = whole(row["input_length"], "input_length")
    output = whole(row["output_length"], "output_length")
    columns = {name: str(value) for name, value in row.items() if isinstance(value, str | int)}
    return TraceRow(where, at_s, prompt, output, output, columns, _segments(row["hash_ids"], prompt, where))


def _segments(ids: Any, prompt_tok: int, where: str) -> list[TokenSegment]:
    if not isinstance(ids, list) or not all(type(id) is int for id in ids):
        raise ValueError(f"hash_ids is {str(ids)[:60]!r}, not a list of whole numbers")
    blocks = -(-prompt_tok // BLOCK_TOK)
    if len(ids) > blocks:
        raise ValueError(f"hash_ids has {len(ids)} ids, but input_length {prompt_tok} takes {blocks} blocks")
    segments: list[TokenSegment] = []
    for at, id in enumerate(ids):  # a partial block is the beginning of what its id names
        segments.append((("block", id), min(BLOCK_TOK, prompt_tok - at * BLOCK_TOK)))
    left_tok = prompt_tok - len(ids) * BLOCK_TOK
    return [*segments, ((where, "own"), left_tok)] if left_tok > 0 else segments
