"""From the rows of a trace to a workload: times, clients, sessions, and what does not fit."""

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.request import ClientId
from serving.sim.synthetic_tokens import SyntheticTokens, TokenSegment
from serving.sim.traces import azure, burstgpt, mooncake, own, sharegpt
from serving.sim.traces.trace import RequestTrace, TraceRow
from serving.sim.workload import SimulatedRequest

type ClientOf = Callable[[TraceRow, int], ClientId]
type Format = Literal["own", "azure", "burstgpt", "mooncake", "sharegpt"]
READERS = {
    "own": own.read,
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "mooncake": mooncake.read,
    "sharegpt": sharegpt.read,
}
# Columns that name the client, the first that a file has; the other formats have none.
CLIENT_COLUMNS = {"own": ("client",), "burstgpt": ("Session ID", "Model")}


@dataclass(frozen=True)
class TraceOptions:
    """How to turn rows into a workload.

    Attributes:
      clients: `column`, `column:NAME`, `hash:N` (N clients of equal popularity), or `zipf:N` (client k is k
        times rarer than the first); "": the format's column if it has one, else `hash:8`. A session has one
        client.
      rate: mean arrivals per second, of sessions where there are any; None: as in the file (1 if it has no
        times).
      oversize: what becomes of a request that never fits: `drop` or `clip` (its prompt, then its output).
      memory_tok: the most tokens of prompt and output limit; None: any number.
      think_s: mean time between turns where the file has none.
      limit: rows that are read at most.
    """

    clients: str = ""
    rate: float | None = None
    oversize: Literal["drop", "clip"] = "drop"
    memory_tok: int | None = None
    think_s: float = 10.0
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate is {self.rate}; it must be above 0")
        if self.oversize not in ("drop", "clip"):
            raise ValueError(f"oversize is {self.oversize!r}; known: drop, clip")


def read_trace(
    path: str | Path, format: str = "own", options: TraceOptions | None = None, seed: int = 0
) -> RequestTrace:
    """Reads a workload from a file.

    Args:
      seed: of what the file leaves open: clients by hash, times of sessions.

    Raises:
      ValueError: an unknown format, a bad row (named with line and field), or no request that fits.
    """
    if format not in READERS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(READERS)}")
    options = options or TraceOptions()
    rows = list(itertools.islice(READERS[format](path), options.limit))
    trace = RequestTrace(rows=len(rows))
    builder = _Builder(options, random.Random(f"{seed}/trace"), trace)
    client_of = _clients(format, options.clients, rows, path, seed)
    trace.random = _random_clients(format, options.clients) or any(
        row.arrival_s is None and row.session is not None and row.think_s is None for row in rows
    )
    for number, (row, at_s) in enumerate(zip(rows, builder.times(rows))):
        builder.add(row, number, client_of(row, number), at_s)
    if not trace.requests:
        raise ValueError(f"{path} holds no request" + (f"; {trace.account()}" if rows else ""))
    trace.requests.sort(key=lambda request: request.arrival_s)
    return trace


class _Builder:
    """Adds rows to a trace one by one."""

    def __init__(self, options: TraceOptions, rng: random.Random, trace: RequestTrace) -> None:
        self.options, self.rng, self.trace = options, rng, trace
        self._context: dict[str, list[TokenSegment]] = {}  # of each session so far
        self._last: dict[str, str] = {}  # its last request that was kept
        self._start_s: dict[str, float] = {}  # when it began
        self._kept: set[str] = set()

    def times(self, rows: list[TraceRow]) -> Iterator[float]:
        """Seconds of arrival, scaled to the rate; where a row follows another, its time to think."""
        known = [row.arrival_s for row in rows if row.arrival_s is not None]
        first, last = min(known, default=0.0), max(known, default=0.0)
        scale = 1.0
        if self.options.rate is not None and len(known) > 1 and last > first:
            scale = (len(known) - 1) / (last - first) / self.options.rate
        clock, begun = 0.0, set[str]()
        for row in rows:
            if row.arrival_s is not None:
                yield (row.arrival_s - (first if scale != 1.0 or first > 1e6 else 0.0)) * scale
            elif row.after is None and row.session not in begun:
                clock += self.rng.expovariate(self.options.rate or 1.0)
                yield clock
            elif row.think_s is not None or row.after is not None:
                yield row.think_s or 0.0
            else:
                yield self.rng.expovariate(1 / self.options.think_s) if self.options.think_s else 0.0
            if row.session is not None:
                begun.add(row.session)

    def add(self, row: TraceRow, number: int, client: ClientId, at_s: float) -> None:
        id = row.id or f"r{number}"
        if row.after is not None and row.after not in self._kept:
            self.trace.drop("follows a dropped request")
            return
        segments = row.segments if row.segments is not None else [(id, row.prompt_tok)]
        context = self._context.get(row.session, []) if row.session is not None else []
        segments = [*context, *segments]
        if row.session is not None:
            self._context[row.session] = [*segments, ((id, "answer"), row.output_tok)]
            self._start_s.setdefault(row.session, at_s)
            if row.session not in self._last:  # its first turn that is kept has a time of its own
                at_s = self._start_s[row.session]
        if not row.prompt_tok or not row.output_tok:
            self.trace.drop("empty prompt" if not row.prompt_tok else "no output")
            return
        prompt_tok = row.prompt_tok + sum(n for _, n in context)
        sizes = self._fit(prompt_tok, row.output_tok, row.max_output_tok)
        if sizes is None:
            self.trace.drop("larger than the memory")
            return
        tokens = row.tokens if row.tokens is not None else SyntheticTokens(segments)
        after = self._last.get(row.session) if row.session is not None else row.after
        if sizes[0] < prompt_tok:
            tokens = tokens.cut(0, sizes[0])
        elif row.session is not None:  # the cache keeps the answer for the next turn
            tokens = SyntheticTokens(self._context[row.session])
        self.trace.requests.append(
            SimulatedRequest(
                *(id, client, at_s, tokens, *sizes),
                cache_salt=row.salt,
                after=after,
                cancel_s=row.cancel_s,
                deadline_s=row.deadline_s,
                priority=row.priority,
                program=row.program,
            )
        )
        if row.weight != 1:
            self.trace.weights[client] = row.weight
        self._kept.add(id)
        if row.session is not None:
            self._last[row.session] = id

    def _fit(self, prompt: int, output: int, most: int) -> tuple[int, int, int] | None:
        """Prompt, output and limit that fit; None if the request is dropped."""
        memory = self.options.memory_tok
        if memory is None or prompt + most <= memory:
            return prompt, output, most
        if self.options.oversize == "drop" or memory < 2:
            return None
        self.trace.clipped += 1
        most = min(most, memory - 1)
        return min(prompt, memory - most), min(output, most), most


def _random_clients(format: str, clients: str) -> bool:
    return clients.startswith(("hash:", "zipf:")) or (not clients and format not in CLIENT_COLUMNS)


def _clients(format: str, clients: str, rows: list[TraceRow], path: str | Path, seed: int) -> ClientOf:
    """Returns the function (row, number) -> client."""
    clients = clients or ("column" if format in CLIENT_COLUMNS else "hash:8")
    kind, _, rest = clients.partition(":")
    if kind in ("hash", "zipf"):
        count = int(rest) if rest.isdigit() else 0
        if count < 1:
            raise ValueError(f"clients is {clients!r}; {kind}:N needs a number of clients of at least 1")
        shares = [1 / (k + 1) if kind == "zipf" else 1.0 for k in range(count)]
        edges = [edge / sum(shares) for edge in itertools.accumulate(shares)]
        width = len(str(count - 1))

        def by_hash(row: TraceRow, number: int) -> ClientId:
            key = f"{seed}/{row.session if row.session is not None else row.id or number}"
            unit = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
            return f"c{next((k for k, edge in enumerate(edges) if unit < edge), count - 1):0{width}}"

        return by_hash
    if kind != "column":
        raise ValueError(f"clients is {clients!r}; known: column, column:NAME, hash:N, zipf:N")
    return _by_column(format, rest, rows, path)


def _by_column(format: str, name: str, rows: list[TraceRow], path: str | Path) -> ClientOf:
    wanted: Iterable[str] = (name,) if name else CLIENT_COLUMNS.get(format, ())
    found = list(rows[0].columns) if rows else []
    column = next((w for w in wanted for f in found if f.lower() == w.lower()), None)
    if rows and column is None:
        asked = f"no column {name!r}" if name else f"format {format} has no column for clients"
        raise ValueError(
            f"{path}: {asked}; found {', '.join(found) or 'none'}; --clients=hash:N makes N clients up"
        )

    def by_column(row: TraceRow, number: int) -> ClientId:
        values = {key.lower(): value for key, value in row.columns.items()}
        value = values.get(column.lower(), "") if column else ""
        if not value.strip():
            raise ValueError(f"{path} {row.where}: {column} is empty, but names the client")
        return value.strip()

    return by_column
