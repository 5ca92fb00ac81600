"""The arena's database: SQLite with a write-ahead log, one transaction a step; the public log only grows."""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from mixattn.evals.arena.platform import tokens
from mixattn.evals.arena.platform.battle import Refused
from mixattn.evals.arena.platform.reader import BROKEN, DONE, STOPPED, USER, WRITING, ArenaReader

SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS model (
  name TEXT PRIMARY KEY, enabled INTEGER, weight REAL, first_s REAL, last_s REAL);
CREATE TABLE IF NOT EXISTS battle (
  id TEXT PRIMARY KEY, session TEXT, mode TEXT, started_s REAL, language TEXT, category TEXT,
  pair_probability REAL, honeypot INTEGER, turns INTEGER, share TEXT UNIQUE);
CREATE TABLE IF NOT EXISTS side (battle TEXT, position INTEGER, model TEXT, PRIMARY KEY (battle, position));
CREATE TABLE IF NOT EXISTS message (
  battle TEXT, turn INTEGER, position INTEGER, content TEXT, status TEXT, PRIMARY KEY (battle, turn,
  position));
CREATE TABLE IF NOT EXISTS vote (
  battle TEXT PRIMARY KEY, winner TEXT, voter TEXT, voted_s REAL, counts_s REAL, not_counted TEXT);
CREATE TABLE IF NOT EXISTS replaced (
  battle TEXT, turn INTEGER, position INTEGER, content TEXT, status TEXT, replaced_s REAL);
CREATE TABLE IF NOT EXISTS work (challenge TEXT PRIMARY KEY, used_s REAL);
CREATE TABLE IF NOT EXISTS excluded (voter TEXT PRIMARY KEY, since_s REAL);
CREATE TABLE IF NOT EXISTS event (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time_s REAL, kind TEXT, detail TEXT);
CREATE INDEX IF NOT EXISTS battle_session ON battle (session, started_s);
CREATE TRIGGER IF NOT EXISTS event_kept BEFORE DELETE ON event
  BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER IF NOT EXISTS event_fixed BEFORE UPDATE ON event
  BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER IF NOT EXISTS vote_kept BEFORE DELETE ON vote BEGIN SELECT RAISE(ABORT, 'votes are kept'); END;
"""
# Columns that databases of earlier versions lack.
ADDED = (
    ("model", "broken", "INTEGER"),
    ("battle", "address", "TEXT"),
    ("battle", "kind", "TEXT"),
    ("vote", "style", "TEXT"),
)
MAX_REGENERATIONS = 3  # new answers a turn
LONG_LOG = 4 << 20  # bytes
# The log is written over again and again: without its times, there is mostly no journal to wait for.
_sync = getattr(os, "fdatasync", os.fsync)


class ArenaStore(ArenaReader):
    """The battles, votes and public events of one arena. Belongs to the thread of the event loop; others read
    through `reader`."""

    def __init__(self, path: str | Path):
        """Opens or creates the database. Answers that a killed server was writing are marked as broken off.

        Raises:
          ValueError: the file is no arena database.
        """
        try:
            super().__init__(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA wal_autocheckpoint=0")  # `tidy` does it, off the event loop
            # A killed process loses nothing so; what must survive a power cut is followed by `flush`.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
            self._add_columns()
            with self.transaction():
                self._db.execute(
                    "INSERT OR IGNORE INTO setting VALUES ('secret', ?)", (tokens.new_id().encode(),)
                )
                self._db.execute("UPDATE message SET status = ? WHERE status = ?", (BROKEN, WRITING))
        except sqlite3.DatabaseError as why:
            raise ValueError(f"{path} cannot be used as the arena's database: {why}") from why
        self._path, self._log_file = Path(path), Path(f"{path}-wal")
        self.secret = bytes(self._one("SELECT value FROM setting WHERE name = 'secret'")[0])

    def reader(self) -> ArenaReader:
        """A reader for another thread. To be closed."""
        address = f"{self._path.resolve().as_uri()}?mode=ro"
        return ArenaReader(sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False))

    def tidy(self) -> None:
        """Moves a long write-ahead log into the database, over a connection of its own; for any thread."""
        if self._log_file.stat().st_size > LONG_LOG:
            with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def flush(self) -> None:
        """Returns when the disk has every transaction that was committed; may run in any thread."""
        with self._log_file.open("rb") as log:
            _sync(log.fileno())

    def _add_columns(self) -> None:
        for table, column, kind in ADDED:
            if column not in {row["name"] for row in self._all(f"PRAGMA table_info({table})")}:
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        self._db.execute("CREATE INDEX IF NOT EXISTS vote_counts ON vote (counts_s)")
        self._db.execute("CREATE INDEX IF NOT EXISTS battle_address ON battle (address, started_s)")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside happens, on disk, or nothing does."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _log(self, kind: str, **detail: Any) -> None:
        sql = "INSERT INTO event (time_s, kind, detail) VALUES (?, ?, ?)"
        self._db.execute(sql, (time.time(), kind, json.dumps(detail, sort_keys=True)))

    # Models

    def sync_models(self, weights: dict[str, float], broken: Collection[str] = ()) -> None:
        """Makes the file's models known; additions, removals and weights go to the public log."""
        now = time.time()
        with self.transaction():
            known = {row["name"]: row for row in self._all("SELECT * FROM model")}
            for name, weight in weights.items():
                if name not in known:
                    self._db.execute(
                        "INSERT INTO model (name, enabled, weight, first_s) VALUES (?, 1, ?, ?)",
                        (name, weight, now),
                    )
                    self._log("added", model=name, weight=weight)
                elif known[name]["weight"] != weight or known[name]["last_s"] is not None:
                    self._db.execute(
                        "UPDATE model SET weight = ?, last_s = NULL WHERE name = ?", (weight, name)
                    )
                    self._log("weight", model=name, weight=weight)
                self._db.execute("UPDATE model SET broken = ? WHERE name = ?", (int(name in broken), name))
            for name, row in known.items():
                if name not in weights and row["last_s"] is None:
                    self._db.execute("UPDATE model SET last_s = ? WHERE name = ?", (now, name))
                    self._log("removed", model=name)

    def enable(self, name: str, enabled: bool) -> None:
        """Switches a model on or off; its votes stay.

        Raises:
          Refused: there is no such model.
        """
        with self.transaction():
            done = self._db.execute("UPDATE model SET enabled = ? WHERE name = ?", (int(enabled), name))
            if not done.rowcount:
                raise Refused("there is no such model", 404)
            self._log("on" if enabled else "off", model=name)

    # Battles

    def open_battle(
        self,
        session: str,
        mode: str,
        models: Sequence[str],
        prompt: str,
        *,
        language: str,
        category: str,
        probability: float | None = None,
        honeypot: str = "",
        address: str = "",
    ) -> str:
        """A new battle with its first prompt; returns its identifier.

        Args:
          honeypot: "self" or "broken" for a battle whose vote tells of the voter only.
          address: a pseudonym of where the visitor comes from.
        """
        battle = tokens.new_id()
        row = {
            **{"id": battle, "session": session, "mode": mode, "started_s": time.time(), "turns": 0},
            **{"language": language, "category": category, "pair_probability": probability},
            **{"honeypot": int(bool(honeypot)), "kind": honeypot or None, "address": address},
        }
        names = ", ".join(row)
        with self.transaction():
            marks = ", ".join("?" * len(row))
            self._db.execute(f"INSERT INTO battle ({names}) VALUES ({marks})", tuple(row.values()))
            sides = [(battle, i, name) for i, name in enumerate(models)]
            self._db.executemany("INSERT INTO side VALUES (?, ?, ?)", sides)
            self._ask(battle, 1, prompt, len(models))
        return battle

    def _ask(self, battle: str, turn: int, prompt: str, sides: int) -> None:
        rows = [(battle, turn, USER, prompt, DONE), *((battle, turn, i, "", WRITING) for i in range(sides))]
        self._db.executemany("INSERT INTO message VALUES (?, ?, ?, ?, ?)", rows)
        self._db.execute("UPDATE battle SET turns = ? WHERE id = ?", (turn, battle))

    def add_finished(self, models: Sequence[str], battles: int, rng: Any) -> None:
        """Voted battles of random pairs and winners, for measurements; `rng` is a numpy Generator."""
        now = time.time()
        with self.transaction():
            for i in range(battles):
                battle, (a, b) = f"made-up-{i}", rng.choice(len(models), 2, replace=False)
                self._db.execute(
                    "INSERT INTO battle (id, session, mode, started_s, language, category, honeypot, turns) "
                    "VALUES (?, ?, 'battle', ?, 'en', 'other', 0, 1)",
                    (battle, f"s{i % 997}", now - battles + i),
                )
                sides = [(battle, 0, models[a]), (battle, 1, models[b])]
                self._db.executemany("INSERT INTO side VALUES (?, ?, ?)", sides)
                self._db.execute(
                    "INSERT INTO vote (battle, winner, voter, voted_s, counts_s) VALUES (?, ?, ?, ?, ?)",
                    (
                        battle,
                        ("model_a", "model_b", "tie")[i % 3],
                        f"voter{i % 997}",
                        now - battles + i,
                        now - 1,
                    ),
                )

    def ask(self, battle: str, prompt: str) -> int:
        """A further turn; returns its number.

        Raises:
          Refused: the state does not allow it.
        """
        with self.transaction():
            state = self.state(battle).ask()
            self._ask(battle, state.turns, prompt, len(state.shown))
        return state.turns

    def again(self, battle: str) -> int:
        """Empties the last turn's answers, to be written once more; the replaced ones are kept aside.

        Returns:
          The turn.

        Raises:
          Refused: the state does not allow it.
        """
        with self.transaction():
            turn = self.state(battle).again().turns
            where = "WHERE battle = ? AND turn = ? AND position >= 0"
            before = int(self._one(f"SELECT count(*) FROM replaced {where}", battle, turn)[0])
            sides = int(self._one("SELECT count(*) FROM side WHERE battle = ?", battle)[0])
            if before >= MAX_REGENERATIONS * sides:
                raise Refused(f"answers can be written anew {MAX_REGENERATIONS} times a turn")
            copy = "INSERT INTO replaced SELECT battle, turn, position, content, status, ? FROM message "
            self._db.execute(copy + where, (time.time(), battle, turn))
            anew = f"UPDATE message SET content = '', status = ? {where}"
            self._db.execute(anew, (WRITING, battle, turn))
        return turn

    def write(self, battle: str, turn: int, position: int, content: str, status: str) -> None:
        """An answer as far as it got. What was stopped stays stopped."""
        self.write_all([(battle, turn, position, content, status)])

    def write_all(self, answers: Sequence[tuple[str, int, int, str, str]]) -> None:
        """Answers as far as they got, in one transaction: battle, turn, position, content, status each."""
        rows = [(text, status, battle, turn, side, WRITING) for battle, turn, side, text, status in answers]
        with self.transaction():
            self._db.executemany(
                "UPDATE message SET content = ?, status = ? WHERE battle = ? AND turn = ? AND position = ? "
                "AND status = ?",
                rows,
            )

    def share(self, battle: str) -> str:
        """The link name of a battle, made when first asked for."""
        with self.transaction():
            self._db.execute(
                "UPDATE battle SET share = ? WHERE id = ? AND share IS NULL", (tokens.new_id(), battle)
            )
        return str(self._one("SELECT share FROM battle WHERE id = ?", battle)["share"])

    def vote(
        self,
        battle: str,
        winner: str,
        voter: str,
        delay_s: float,
        not_counted: str | None,
        style: dict[str, Any] | None = None,
    ) -> None:
        """The vote, in one transaction; when this returns it is on disk.

        Args:
          style: the answers' style counts, `conv_metadata` of the public format.

        Raises:
          Refused: the state does not allow it.
        """
        now = time.time()
        with self.transaction():
            self.state(battle).vote(winner)
            row = (battle, winner, voter, now, now + delay_s, not_counted, json.dumps(style or {}))
            columns = "battle, winner, voter, voted_s, counts_s, not_counted, style"
            self._db.execute(f"INSERT INTO vote ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._db.execute(
                "UPDATE message SET status = ? WHERE battle = ? AND status = ?", (STOPPED, battle, WRITING)
            )

    def use_work(self, challenge: str) -> bool:
        """Marks a proof of work as used; False if it was used before."""
        with self.transaction():
            done = self._db.execute("INSERT OR IGNORE INTO work VALUES (?, ?)", (challenge, time.time()))
        return bool(done.rowcount)

    def exclude(self, voter: str, excluded: bool) -> None:
        """Stops, or lets again, all of a voter's votes from counting; they are kept."""
        with self.transaction():
            if excluded:
                self._db.execute("INSERT OR IGNORE INTO excluded VALUES (?, ?)", (voter, time.time()))
            else:
                self._db.execute("DELETE FROM excluded WHERE voter = ?", (voter,))
            self._log("voter excluded" if excluded else "voter counts again", voter=voter)

    def log(self, kind: str, **detail: Any) -> None:
        """Adds to the public log."""
        with self.transaction():
            self._log(kind, **detail)
