"""Stores: an append-only log of commits and completed model calls, with checkpoints of the world.

`InMemoryStore` keeps it in lists. `SqliteStore` writes one file that any SQLite tool can read. Calls, and
commits with calls, are on disk before the run continues, so a killed process loses neither. Commits without
calls are batched. Applying the outcomes in the order of the log rebuilds the world.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mixattn.evals.llm import Completion, Usage
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.world import AgentId, Birth, Body, StepOutcome, Write


@dataclass(frozen=True, slots=True)
class Commit:
    """One step of a cluster, as applied to the world.

    Attributes:
      seq: 0, 1, 2, ... in the order of commits.
      viewed: commits already applied when its members took their views.
      start_s, end_s: times of dispatch and commit, on the engine's clock.
      calls: model calls of its members.
      still: promises not to move, as pairs (agent, first step in which it may).
    """

    seq: int
    step: int
    members: tuple[AgentId, ...]
    outcome: StepOutcome
    viewed: int
    start_s: float = 0.0
    end_s: float = 0.0
    calls: int = 0
    still: tuple[tuple[AgentId, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One completed model call. `index` counts the calls within a step."""

    agent: AgentId
    step: int
    index: int
    prompt: str
    prompt_digest: str
    completion: Completion
    start_s: float
    end_s: float
    retries: int


class Checkpoint(NamedTuple):
    """The whole state of a simulation after `seq` commits, as JSON."""

    seq: int
    state: Any


class Store(Protocol):
    """The log of one run."""

    def begin(self, about: dict[str, Any]) -> None:
        """Adds facts that identify the run. Raises ValueError if the store holds different ones."""

    def commit(self, commit: Commit) -> None:
        """Appends a commit."""

    def call(self, call: Call) -> None:
        """Adds a call."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Adds a checkpoint."""

    def about(self) -> dict[str, Any]:
        """Returns the facts given to `begin`."""

    def commits(self) -> Iterator[Commit]:
        """Yields all commits in order."""

    def calls(self) -> Iterator[Call]:
        """Yields all calls."""

    def last_checkpoint(self, upto: int) -> Checkpoint | None:
        """Returns the last checkpoint with at most `upto` commits."""

    def truncate(self, seq: int) -> None:
        """Deletes commits from number `seq` on and later checkpoints. Calls are kept for reuse."""

    def flush(self) -> None:
        """Writes pending rows to disk."""

    def close(self) -> None:
        """Flushes and closes the store."""


class InMemoryStore:
    """Keeps the log in memory."""

    def __init__(self) -> None:
        self._about: dict[str, Any] = {}
        self.log: list[Commit] = []
        self._calls: dict[tuple[AgentId, int, int], Call] = {}
        self._checkpoints: list[Checkpoint] = []

    def begin(self, about: dict[str, Any]) -> None:
        _check_same_run(self._about, about)
        self._about = {**self._about, **json.loads(json.dumps(about))}

    def commit(self, commit: Commit) -> None:
        self.log.append(commit)

    def call(self, call: Call) -> None:
        self._calls[call.agent, call.step, call.index] = call

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        # A copy: a world may mutate objects that its snapshot refers to.
        self._checkpoints.append(Checkpoint(checkpoint.seq, json.loads(json.dumps(checkpoint.state))))

    def about(self) -> dict[str, Any]:
        return self._about

    def commits(self) -> Iterator[Commit]:
        return iter(self.log)

    def calls(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def last_checkpoint(self, upto: int) -> Checkpoint | None:
        return max((c for c in self._checkpoints if c.seq <= upto), default=None, key=lambda c: c.seq)

    def truncate(self, seq: int) -> None:
        del self.log[seq:]
        self._checkpoints = [c for c in self._checkpoints if c.seq <= seq]

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


_TABLES = """
create table if not exists about (name text primary key, value text not null);
create table if not exists commits (seq integer primary key, step integer not null, members text not null,
  outcome text not null, still text not null, viewed integer not null, start_s real not null,
  end_s real not null, calls integer not null);
create table if not exists llm_calls (agent text, step integer, idx integer, prompt text not null,
  prompt_digest text not null, output text not null, finish text not null, prompt_tok integer not null,
  output_tok integer not null, cached_tok integer not null, start_s real not null, end_s real not null,
  retries integer not null, primary key (agent, step, idx)) without rowid;
create table if not exists checkpoints (seq integer primary key, state text not null);
"""


class SqliteStore:
    """One SQLite file in WAL mode.

    Args:
      path: created if missing.
      batch: commits without calls are written in transactions of this many rows.

    Raises:
      ValueError: the file is not a SQLite database, or another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str], *, batch: int = 256) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{path} cannot be used as a run's log: {error}") from error
        self._batch, self._pending_rows = batch, 0

    def _write(self, sql: str, row: tuple[Any, ...], *, durable: bool) -> None:
        if not self._pending_rows:
            self._db.execute("begin")
        self._db.execute(sql, row)
        self._pending_rows += 1
        if durable or self._pending_rows >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Commits the open transaction."""
        if self._pending_rows:
            self._db.execute("commit")
            self._pending_rows = 0

    def begin(self, about: dict[str, Any]) -> None:
        _check_same_run(self.about(), about)
        for name, value in about.items():
            row = (name, json.dumps(value))
            self._write("insert or replace into about values (?, ?)", row, durable=False)
        self.flush()

    def about(self) -> dict[str, Any]:
        return {name: json.loads(value) for name, value in self._db.execute("select * from about")}

    def commit(self, commit: Commit) -> None:
        row = (
            commit.seq,
            commit.step,
            json.dumps(commit.members),
            json.dumps(outcome_to_json(commit.outcome), separators=(",", ":")),
            json.dumps(commit.still),
            commit.viewed,
            commit.start_s,
            commit.end_s,
            commit.calls,
        )
        self._write("insert into commits values (?,?,?,?,?,?,?,?,?)", row, durable=commit.calls > 0)

    def call(self, call: Call) -> None:
        text, used, finish = call.completion.text, call.completion.usage, call.completion.finish_reason
        row = (
            *(call.agent, call.step, call.index, call.prompt, call.prompt_digest, text, finish),
            *(used.prompt_tok, used.output_tok, used.cached_tok, call.start_s, call.end_s, call.retries),
        )
        sql = "insert or replace into llm_calls values (?,?,?,?,?,?,?,?,?,?,?,?,?)"
        self._write(sql, row, durable=True)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        row = (checkpoint.seq, json.dumps(checkpoint.state))
        self._write("insert or replace into checkpoints values (?, ?)", row, durable=True)

    def commits(self) -> Iterator[Commit]:
        columns = "seq, step, members, outcome, still, viewed, start_s, end_s, calls"
        sql = f"select {columns} from commits order by seq"
        for seq, step, members, outcome, still, viewed, start_s, end_s, calls in self._db.execute(sql):
            yield Commit(
                seq=seq,
                step=step,
                members=tuple(json.loads(members)),
                outcome=outcome_from_json(json.loads(outcome)),
                viewed=viewed,
                start_s=start_s,
                end_s=end_s,
                calls=calls,
                still=tuple((a, s) for a, s in json.loads(still)),
            )

    def calls(self) -> Iterator[Call]:
        for row in self._db.execute("select * from llm_calls"):
            agent, step, index, prompt, digest, text, finish, tok_in, tok_out, cached, t0, t1, retries = row
            completion = Completion(text, Usage(tok_in, tok_out, cached), finish)
            yield Call(agent, step, index, prompt, digest, completion, t0, t1, retries)

    def last_checkpoint(self, upto: int) -> Checkpoint | None:
        sql = "select seq, state from checkpoints where seq <= ? order by seq desc limit 1"
        row = self._db.execute(sql, (upto,)).fetchone()
        return None if row is None else Checkpoint(row[0], json.loads(row[1]))

    def truncate(self, seq: int) -> None:
        self.flush()
        self._db.execute("begin")
        self._db.execute("delete from commits where seq >= ?", (seq,))
        self._db.execute("delete from checkpoints where seq > ?", (seq,))
        self._db.execute("commit")

    def close(self) -> None:
        self.flush()
        self._db.close()


def _check_same_run(old: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        if name in old and old[name] != json.loads(json.dumps(value)):
            raise ValueError(
                f"the store holds a run with {name}={old[name]!r}, this one has {name}={value!r}"
            )


def outcome_to_json(outcome: StepOutcome) -> dict[str, Any]:
    """Returns an outcome as JSON, without its empty parts."""
    births = []
    for parent, id, body in outcome.births:
        reach = [body.reach.perceive, body.reach.move, body.reach.write]
        births.append([parent, id, body.pos, reach, body.state])
    parts = {
        "moves": dict(outcome.moves),
        "writes": [list(w) for w in outcome.writes],
        "states": dict(outcome.states),
        "births": births,
        "deaths": list(outcome.deaths),
    }
    return {name: part for name, part in parts.items() if part}


def outcome_from_json(data: dict[str, Any]) -> StepOutcome:
    """Inverts `outcome_to_json`. Positions become tuples again."""
    return StepOutcome(
        moves={a: position_from_json(p) for a, p in data.get("moves", {}).items()},
        writes=tuple(Write(a, position_from_json(at), value) for a, at, value in data.get("writes", ())),
        states=data.get("states", {}),
        births=tuple(
            Birth(parent, id, Body(position_from_json(pos), Reach(*reach), state))
            for parent, id, pos, reach, state in data.get("births", ())
        ),
        deaths=tuple(data.get("deaths", ())),
    )


def position_from_json(value: Any) -> Any:
    """Returns a position read from JSON: lists become tuples."""
    return tuple(value) if isinstance(value, list) else value
