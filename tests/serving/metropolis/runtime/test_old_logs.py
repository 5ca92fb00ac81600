"""Logs written by commit 23cc231 are read, audited and resumed by today's code.

`fixtures/nursery.db` is an interrupted run of `CASE` with checkpoints, births, a death, promises and calls
whose commit is missing. `fixtures/town.db` holds 130 steps of `run --residents=3` with the stub model.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from serving.metropolis import Simulation, SqliteStore
from serving.metropolis.runtime.audit import Violation, audit
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.schedule.space import METRICS
from tests.serving.metropolis.example_worlds import (
    Case,
    RandomLatencyModel,
    build_nursery,
    record_run,
    run_case,
    same_end,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASE = Case(11, agents=8, size=20, steps=14, stay_for=3)
# SHA-256 of final positions, states and cells in lock-step, computed by commit 23cc231.
END = "82d83e05bf586fd7e39c0ac73a3420fe76241e1e2ef358e8c2c01983dda936b4"


@pytest.fixture
def store(tmp_path):
    shutil.copy(FIXTURES / "nursery.db", tmp_path / "run.db")
    store = SqliteStore(tmp_path / "run.db")
    yield store
    store.close()


def digest(record) -> str:
    parts = [sorted(part.items()) for part in (record.positions, record.states, record.cells)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def test_an_old_log_is_read(store):
    log, calls = list(store.commits()), list(store.calls())
    assert store.about() == {"seed": 11, "mode": "metropolis", "agents": 8}
    assert [c.seq for c in log] == list(range(36))
    assert sum(len(c.members) for c in log) == 86
    assert sum(c.calls for c in log) == 49 < len(calls) == 53
    assert [b.id for c in log for b in c.outcome.births] == ["a00x", "a01x"]
    assert [name for c in log for name in c.outcome.deaths] == ["a02"]
    assert sum(bool(c.still) for c in log) == 15
    assert store.last_checkpoint(36).seq == 36
    assert all(isinstance(pos, tuple) for c in log for pos in c.outcome.moves.values())


def test_an_old_log_passes_the_audit_and_a_changed_one_does_not(store):
    world, _ = build_nursery(CASE)
    log, bodies = list(store.commits()), world.reset(CASE.seed)
    assert audit(log, bodies, METRICS["chebyshev"]) == 86
    with pytest.raises(Violation):
        audit(log[1:], bodies, METRICS["chebyshev"])


@pytest.mark.parametrize("upto", [None, 35, 20, 7, 0])
def test_an_old_log_is_resumed_to_the_end_of_the_old_code(store, upto):
    """From its last checkpoint, from commits after an earlier one, and from the calls alone."""
    want = run_case(CASE, "parallel_sync", **dict(zip(("world", "agents"), build_nursery(CASE))))
    assert digest(want) == END
    calls = len(list(store.calls()))
    world, agents = build_nursery(CASE)
    model = RandomLatencyModel(7)
    sim = Simulation(world, agents, model, seed=CASE.seed, store=store, checkpoint_every=3)
    got = record_run(run_virtual(sim.run(CASE.steps, resume=True, upto=upto)), world, store)
    assert same_end(want, got)
    assert digest(got) == END
    assert sim.stats.reused == calls - sum(c.calls for c in got.log[: 36 if upto is None else upto])
    assert model.attempts + calls == len(list(store.calls()))


def test_an_old_town_is_resumed_audited_and_drawn(run_module, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(FIXTURES / "town.db", old / "run.db")
    flags = ("--residents=3", "--steps=200", "--json")
    for workdir, resume in ((old, ["--resume"]), (new, [])):
        done = run_module("serving.metropolis", "run", f"--workdir={workdir}", *flags, *resume)
        assert done.returncode == 0, done.stderr
    assert story(old / "run.db") == story(new / "run.db")
    done = run_module("serving.metropolis", "check", f"--workdir={old}")
    assert "600 agent-steps" in done.stdout
    assert run_module("serving.metropolis", "replay", f"--workdir={old}").returncode == 0
    assert (old / "replay.html").stat().st_size > 10_000


def story(path) -> list:
    """Every agent's moves, looks and calls by step, whatever the order of commits."""
    store = SqliteStore(path)
    rows = []
    for c in store.commits():
        rows += [[c.step, "moves", *map(str, move)] for move in c.outcome.moves.items()]
        rows += [[c.step, "writes", *map(str, write)] for write in c.outcome.writes]
    rows += [[c.step, "calls", c.agent, c.prompt, c.completion.text] for c in store.calls()]
    store.close()
    return sorted(rows)
