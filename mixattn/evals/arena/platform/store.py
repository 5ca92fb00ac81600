"""The arena's database: SQLite with a write-ahead log, one transaction a step; the public log only grows."""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixattn.evals.arena.platform import tokens
from mixattn.evals.arena.platform.battle import BattleState, Refused

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
CREATE TABLE IF NOT EXISTS event (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time_s REAL, kind TEXT, detail TEXT);
CREATE INDEX IF NOT EXISTS battle_session ON battle (session, started_s);
CREATE TRIGGER IF NOT EXISTS event_kept BEFORE DELETE ON event
  BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER IF NOT EXISTS event_fixed BEFORE UPDATE ON event
  BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER IF NOT EXISTS vote_kept BEFORE DELETE ON vote BEGIN SELECT RAISE(ABORT, 'votes are kept'); END;
"""
USER = -1  # position of the user's messages
WRITING, DONE, STOPPED, BROKEN = "writing", "done", "stopped", "broken"


class ArenaStore:
    """The battles, votes and public events of one arena."""

    def __init__(self, path: str | Path):
        """Opens or creates the database. Answers that a killed server was writing are marked as broken off.

        Raises:
          ValueError: the file is no arena database.
        """
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
            with self.transaction():
                self._db.execute(
                    "INSERT OR IGNORE INTO setting VALUES ('secret', ?)", (tokens.new_id().encode(),)
                )
                self._db.execute("UPDATE message SET status = ? WHERE status = ?", (BROKEN, WRITING))
        except sqlite3.DatabaseError as why:
            raise ValueError(f"{path} cannot be used as the arena's database: {why}") from why
        self.secret = bytes(self._one("SELECT value FROM setting WHERE name = 'secret'")[0])

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside happens, on disk, or nothing does."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def _one(self, sql: str, *values: Any) -> Any:
        return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute(sql, values)]

    def _log(self, kind: str, **detail: Any) -> None:
        sql = "INSERT INTO event (time_s, kind, detail) VALUES (?, ?, ?)"
        self._db.execute(sql, (time.time(), kind, json.dumps(detail, sort_keys=True)))

    # Models

    def sync_models(self, weights: dict[str, float]) -> None:
        """Makes the file's models known; additions, removals and weights go to the public log."""
        now = time.time()
        with self.transaction():
            known = {row["name"]: row for row in self._all("SELECT * FROM model")}
            for name, weight in weights.items():
                if name not in known:
                    self._db.execute("INSERT INTO model VALUES (?, 1, ?, ?, NULL)", (name, weight, now))
                    self._log("added", model=name, weight=weight)
                elif known[name]["weight"] != weight or known[name]["last_s"] is not None:
                    self._db.execute(
                        "UPDATE model SET weight = ?, last_s = NULL WHERE name = ?", (weight, name)
                    )
                    self._log("weight", model=name, weight=weight)
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

    def models(self) -> list[dict[str, Any]]:
        return self._all("SELECT * FROM model ORDER BY name")

    def events(self) -> list[dict[str, Any]]:
        """The public log, oldest first."""
        rows = self._all("SELECT * FROM event ORDER BY number")
        return [row | {"detail": json.loads(row["detail"])} for row in rows]

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
        probability: float | None,
        honeypot: bool,
    ) -> str:
        """A new battle with its first prompt; returns its identifier."""
        battle = tokens.new_id()
        with self.transaction():
            row = (
                battle,
                session,
                mode,
                time.time(),
                language,
                category,
                probability,
                int(honeypot),
                0,
                None,
            )
            self._db.execute("INSERT INTO battle VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            sides = [(battle, i, name) for i, name in enumerate(models)]
            self._db.executemany("INSERT INTO side VALUES (?, ?, ?)", sides)
            self._ask(battle, 1, prompt, len(models))
        return battle

    def _ask(self, battle: str, turn: int, prompt: str, sides: int) -> None:
        rows = [(battle, turn, USER, prompt, DONE), *((battle, turn, i, "", WRITING) for i in range(sides))]
        self._db.executemany("INSERT INTO message VALUES (?, ?, ?, ?, ?)", rows)
        self._db.execute("UPDATE battle SET turns = ? WHERE id = ?", (turn, battle))

    def ask(self, battle: str, prompt: str) -> int:
        """A further turn; returns its number.

        Raises:
          Refused: the state does not allow it.
        """
        with self.transaction():
            state = self.state(battle).ask()
            self._ask(battle, state.turns, prompt, len(state.shown))
        return state.turns

    def write(self, battle: str, turn: int, position: int, content: str, status: str) -> None:
        """An answer as far as it got. What was stopped stays stopped."""
        with self.transaction():
            self._db.execute(
                "UPDATE message SET content = ?, status = ? WHERE battle = ? AND turn = ? AND position = ? "
                "AND status = ?",
                (content, status, battle, turn, position, WRITING),
            )

    def battle(self, battle: str) -> dict[str, Any] | None:
        """A battle with `models`, `messages` and `vote` (None before it)."""
        row = self._one("SELECT * FROM battle WHERE id = ?", battle)
        if row is None:
            return None
        sides = self._all("SELECT model FROM side WHERE battle = ? ORDER BY position", battle)
        messages = self._all("SELECT * FROM message WHERE battle = ? ORDER BY turn, position", battle)
        votes = self._all("SELECT * FROM vote WHERE battle = ?", battle)
        found = {"models": [side["model"] for side in sides], "messages": messages}
        return dict(row) | found | {"vote": votes[0] if votes else None}

    def shared(self, share: str) -> dict[str, Any] | None:
        row = self._one("SELECT id FROM battle WHERE share = ?", share)
        return None if row is None else self.battle(row["id"])

    def share(self, battle: str) -> str:
        """The link name of a battle, made when first asked for."""
        with self.transaction():
            self._db.execute(
                "UPDATE battle SET share = ? WHERE id = ? AND share IS NULL", (tokens.new_id(), battle)
            )
        return str(self._one("SELECT share FROM battle WHERE id = ?", battle)["share"])

    def state(self, battle: str) -> BattleState:
        """Where a stored battle stands."""
        turns = self._one("SELECT turns FROM battle WHERE id = ?", battle)["turns"]
        sql = "SELECT content, status FROM message WHERE battle = ? AND turn = ? AND position >= 0 "
        rows = self._all(sql + "ORDER BY position", battle, turns)
        vote = self._one("SELECT winner FROM vote WHERE battle = ?", battle)
        ended = tuple(row["status"] != WRITING for row in rows)
        shown = tuple(done or bool(row["content"]) for done, row in zip(ended, rows))
        return BattleState(turns, shown, ended, vote["winner"] if vote else None)

    def vote(self, battle: str, winner: str, voter: str, delay_s: float, not_counted: str | None) -> None:
        """The vote, in one transaction; when this returns it is on disk.

        Raises:
          Refused: the state does not allow it.
        """
        now = time.time()
        with self.transaction():
            self.state(battle).vote(winner)
            row = (battle, winner, voter, now, now + delay_s, not_counted)
            self._db.execute("INSERT INTO vote VALUES (?, ?, ?, ?, ?, ?)", row)
            self._db.execute(
                "UPDATE message SET status = ? WHERE battle = ? AND status = ?", (STOPPED, battle, WRITING)
            )

    def recent_battles(self, session: str, since_s: float) -> int:
        sql = "SELECT count(*) FROM battle WHERE session = ? AND started_s > ?"
        return int(self._one(sql, session, since_s)[0])

    def times_asked(self, session: str, prompt: str) -> int:
        """How often this session began a battle with this prompt."""
        sql = (
            "SELECT count(*) FROM battle JOIN message ON message.battle = battle.id "
            "WHERE session = ? AND turn = 1 AND position = -1 AND content = ?"
        )
        return int(self._one(sql, session, prompt)[0])

    def votes(self, *, counted: bool) -> list[dict[str, Any]]:
        """Votes in the public format whose delay has passed; with `counted`, those that count only."""
        sql = (
            "SELECT battle.id AS question_id, a.model AS model_a, b.model AS model_b, "
            "winner, voter AS judge, "
            "mode = 'battle' AS anony, language, voted_s AS tstamp, pair_probability, "
            "category, turns AS turn, "
            "honeypot, not_counted FROM vote JOIN battle ON battle.id = vote.battle "
            "JOIN side a ON a.battle = battle.id AND a.position = 0 "
            "JOIN side b ON b.battle = battle.id AND b.position = 1 WHERE counts_s <= ? "
        )
        if counted:
            sql += "AND not_counted IS NULL AND mode = 'battle' AND honeypot = 0 "
        rows = self._all(sql + "ORDER BY vote.rowid", time.time())
        return [row | {"anony": bool(row["anony"])} for row in rows]

    def conversations(self, battle: str) -> list[list[dict[str, str]]]:
        """The conversation of each side, as role and content."""
        found = self.battle(battle)
        sides = range(len(found["models"])) if found else ()
        return [
            [
                {"role": "user" if m["position"] == USER else "assistant", "content": m["content"]}
                for m in (found or {})["messages"]
                if m["position"] in (USER, side)
            ]
            for side in sides
        ]

    def version(self) -> tuple[int, int]:
        """Changes whenever a vote starts to count."""
        row = self._one("SELECT count(*), coalesce(max(rowid), 0) FROM vote WHERE counts_s <= ?", time.time())
        return int(row[0]), int(row[1])
