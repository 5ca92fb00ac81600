"""What survives: an append-only log of commits and paid-for calls, with checkpoints of the world.

`InMemoryStore` keeps it in lists. `SqliteStore` writes one file that any SQLite tool can read; a commit that
cost calls, and every call, is on disk before the run goes on (a killed process loses neither), commits that
cost nothing are batched. The log's order is a legal order: applying outcomes one by one rebuilds the world.
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
    """One cluster's step, as it entered the world.

    Attributes:
      seq: 0, 1, 2, ... in the order of commits.
      viewed: commits already applied when its members took their views.
      start_s, end_s: when it was dispatched and committed, on the engine's clock.
      calls: language-model calls of its members.
      still: promises not to move, by agent.
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
    """One completed language-model call."""

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
    """The whole simulation after `seq` commits, as JSON."""

    seq: int
    state: Any


class Store(Protocol):
    def begin(self, about: dict[str, Any]) -> None:
        """Notes what run this is. ValueError if the store holds a different one."""

    def commit(self, commit: Commit) -> None: ...
    def call(self, call: Call) -> None: ...
    def checkpoint(self, checkpoint: Checkpoint) -> None: ...
    def about(self) -> dict[str, Any]: ...
    def commits(self) -> Iterator[Commit]: ...
    def calls(self) -> Iterator[Call]: ...
    def last_checkpoint(self, upto: int) -> Checkpoint | None: ...
    def cut(self, seq: int) -> None:
        """Forgets commits and checkpoints from number `seq` on; calls stay, they are paid for."""

    def flush(self) -> None:
        """Makes everything so far durable."""

    def close(self) -> None: ...


class InMemoryStore:
    """Keeps everything in this process."""

    def __init__(self):
        self._about: dict[str, Any] = {}
        self.log: list[Commit] = []
        self._calls: dict[tuple[AgentId, int, int], Call] = {}
        self._checkpoints: list[Checkpoint] = []

    def begin(self, about):
        _same_run(self._about, about)
        self._about = about

    def commit(self, commit):
        self.log.append(commit)

    def call(self, call):
        self._calls[call.agent, call.step, call.index] = call

    def checkpoint(self, checkpoint):
        # As text and back: a world may go on changing what its snapshot still refers to.
        self._checkpoints.append(Checkpoint(checkpoint.seq, json.loads(json.dumps(checkpoint.state))))

    def about(self):
        return self._about

    def commits(self):
        return iter(self.log)

    def calls(self):
        return iter(self._calls.values())

    def last_checkpoint(self, upto):
        return max((c for c in self._checkpoints if c.seq <= upto), default=None, key=lambda c: c.seq)

    def cut(self, seq):
        del self.log[seq:]
        self._checkpoints = [c for c in self._checkpoints if c.seq <= seq]

    def flush(self):
        pass

    def close(self):
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
      batch: commits that cost no calls are made durable this many at a time.

    Raises:
      ValueError: the file is something else, or another process is writing to it.
    """

    def __init__(self, path: str | os.PathLike[str], *, batch: int = 256):
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            self._db.executescript(_TABLES)
        except sqlite3.DatabaseError as why:
            self._db.close()
            raise ValueError(f"{path} cannot be used as a run's log: {why}") from why
        self._batch, self._open = batch, 0

    def _write(self, sql: str, row: tuple, *, durable: bool) -> None:
        if not self._open:
            self._db.execute("begin")
        self._db.execute(sql, row)
        self._open += 1
        if durable or self._open >= self._batch:
            self.flush()

    def flush(self) -> None:
        """Ends the open transaction."""
        if self._open:
            self._db.execute("commit")
            self._open = 0

    def begin(self, about):
        _same_run(self.about(), about)
        for name, value in about.items():
            row = (name, json.dumps(value))
            self._write("insert or replace into about values (?, ?)", row, durable=False)
        self.flush()

    def about(self):
        return {name: json.loads(value) for name, value in self._db.execute("select * from about")}

    def commit(self, commit):
        row = (
            commit.seq,
            commit.step,
            json.dumps(commit.members),
            json.dumps(to_json(commit.outcome), separators=(",", ":")),
            json.dumps(commit.still),
            commit.viewed,
            commit.start_s,
            commit.end_s,
            commit.calls,
        )
        self._write("insert into commits values (?,?,?,?,?,?,?,?,?)", row, durable=commit.calls > 0)

    def call(self, call):
        text, used, finish = call.completion.text, call.completion.usage, call.completion.finish_reason
        row = (
            *(call.agent, call.step, call.index, call.prompt, call.prompt_digest, text, finish),
            *(used.prompt_tok, used.output_tok, used.cached_tok, call.start_s, call.end_s, call.retries),
        )
        sql = "insert or replace into llm_calls values (?,?,?,?,?,?,?,?,?,?,?,?,?)"
        self._write(sql, row, durable=True)

    def checkpoint(self, checkpoint):
        row = (checkpoint.seq, json.dumps(checkpoint.state))
        self._write("insert or replace into checkpoints values (?, ?)", row, durable=True)

    def commits(self):
        columns = "seq, step, members, outcome, still, viewed, start_s, end_s, calls"
        sql = f"select {columns} from commits order by seq"
        for seq, step, members, outcome, still, viewed, start_s, end_s, calls in self._db.execute(sql):
            yield Commit(
                seq=seq,
                step=step,
                members=tuple(json.loads(members)),
                outcome=from_json(json.loads(outcome)),
                viewed=viewed,
                start_s=start_s,
                end_s=end_s,
                calls=calls,
                still=tuple((a, s) for a, s in json.loads(still)),
            )

    def calls(self):
        for row in self._db.execute("select * from llm_calls"):
            agent, step, index, prompt, digest, text, finish, tok_in, tok_out, cached, t0, t1, retries = row
            done = Completion(text, Usage(tok_in, tok_out, cached), finish)
            yield Call(agent, step, index, prompt, digest, done, t0, t1, retries)

    def last_checkpoint(self, upto):
        sql = "select seq, state from checkpoints where seq <= ? order by seq desc limit 1"
        row = self._db.execute(sql, (upto,)).fetchone()
        return row and Checkpoint(row[0], json.loads(row[1]))

    def cut(self, seq):
        self.flush()
        self._db.execute("begin")
        self._db.execute("delete from commits where seq >= ?", (seq,))
        self._db.execute("delete from checkpoints where seq > ?", (seq,))
        self._db.execute("commit")

    def close(self):
        self.flush()
        self._db.close()


def _same_run(old: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        if name in old and old[name] != json.loads(json.dumps(value)):
            raise ValueError(
                f"the store holds a run with {name}={old[name]!r}, this one has {name}={value!r}"
            )


def to_json(outcome: StepOutcome) -> dict[str, Any]:
    """An outcome as JSON, empty parts left out."""
    births = [
        [
            b.parent,
            b.id,
            b.body.pos,
            [b.body.reach.perceive, b.body.reach.move, b.body.reach.write],
            b.body.state,
        ]
        for b in outcome.births
    ]
    whole = {
        "moves": dict(outcome.moves),
        "writes": [list(w) for w in outcome.writes],
        "states": dict(outcome.states),
        "births": births,
        "deaths": list(outcome.deaths),
    }
    return {name: part for name, part in whole.items() if part}


def from_json(data: dict[str, Any]) -> StepOutcome:
    """The inverse of `to_json`; lists that were positions are tuples again."""
    return StepOutcome(
        moves={a: position(p) for a, p in data.get("moves", {}).items()},
        writes=tuple(Write(a, position(at), value) for a, at, value in data.get("writes", ())),
        states=data.get("states", {}),
        births=tuple(
            Birth(parent, id, Body(position(pos), Reach(*reach), state))
            for parent, id, pos, reach, state in data.get("births", ())
        ),
        deaths=tuple(data.get("deaths", ())),
    )


def position(value: Any) -> Any:
    """A position read back from JSON."""
    return tuple(value) if isinstance(value, list) else value
