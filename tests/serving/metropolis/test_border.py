"""What comes in from outside: worlds that break the rules, damaged positions, dead servers, two processes."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixattn.evals.llm import Scripted
from mixattn.tools.exclusive import open_exclusive
from serving.metropolis import (
    Body,
    CausalityError,
    Grid,
    Intent,
    Reach,
    Simulation,
    SqliteStore,
    StepOutcome,
    Write,
)

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "serving" / "metropolis" / "README.md"


class Walkers:
    """Two agents far apart; the first goes to `to` at step 2, views really reach as far as `sees`."""

    def __init__(self, to=(1, 0), sees=1, value="mark"):
        self.space, self.to, self.sees, self.value = Grid(), to, sees, value

    def reset(self, seed):
        self.at = {"ann": (0, 0), "bob": (50, 0)}
        return {name: Body(pos, Reach(1, 1)) for name, pos in self.at.items()}

    def view(self, agent, step):
        return tuple(
            sorted(p for p in self.at.values() if self.space.distance(p, self.at[agent]) <= self.sees)
        )

    def resolve(self, step, intents):
        goals = {n: self.to if (n, step) == ("ann", 2) else i.action for n, i in intents.items()}
        return StepOutcome(moves=goals, writes=[Write(n, self.at[n], self.value) for n in intents])

    def apply(self, step, outcome):
        self.at.update(outcome.moves)

    def snapshot(self):
        return self.at

    def restore(self, snapshot):
        self.at = {name: tuple(pos) for name, pos in snapshot.items()}


class Steps:
    async def proceed(self, view, ctx):
        x = (0 if ctx.agent == "ann" else 50) + ctx.step % 2
        return Intent((x, 0))


def simulate(world, store, until=6, **options):
    agents = {"ann": Steps(), "bob": Steps()}
    return Simulation(world, agents, Scripted(lambda prompt: ""), store=store, **options).run_sync(until)


@pytest.mark.parametrize(
    "to", [(math.nan, 0), (0, math.inf), (1,), "up", None, [0, 1], (0, "1"), (9, 9)], ids=repr
)
def test_a_move_to_what_is_no_position_within_reach_is_refused_before_the_commit(tmp_path, to):
    store = SqliteStore(tmp_path / "run.db")
    with pytest.raises(CausalityError, match=r"'ann' moves .*step 2"):
        simulate(Walkers(to), store)
    kept = [c for c in store.commits() if "ann" in c.members]
    assert [c.step for c in kept] == [0, 1]
    store.close()
    store = SqliteStore(tmp_path / "run.db")
    again = Simulation(Walkers(), {"ann": Steps(), "bob": Steps()}, Scripted(lambda p: ""), store=store)
    assert again.run_sync(6, resume=True).steps == {"ann": 6, "bob": 6}
    store.close()


def test_a_value_that_json_cannot_hold_names_agents_and_step(tmp_path):
    store = SqliteStore(tmp_path / "run.db")
    with pytest.raises(CausalityError, match=r"ann.* at step 0 do what JSON cannot hold"):
        simulate(Walkers(value={1, 2}), store)
    assert not list(store.commits())
    store.close()


def test_an_agent_that_starts_at_no_position_is_refused():
    world = Walkers()
    world.reset = lambda seed: {"ann": Body((math.nan, 0), Reach(1, 1))}
    with pytest.raises(ValueError, match=r"'ann' starts at \(nan, 0\)"):
        simulate(world, None)


def test_a_world_that_shows_more_than_perceive_is_noticed_by_default():
    with pytest.raises(CausalityError, match=r"shows a change .* at distance \d+, but .* perceives 1"):
        simulate(Walkers(sees=100), None, until=60)
    simulate(Walkers(sees=1), None, until=60)
    simulate(Walkers(sees=100), None, until=60, verify_views=0)  # the negative control


def test_two_runs_in_one_workdir_are_one_run_and_a_sentence(run_module, tmp_path):
    with open_exclusive(tmp_path / ".lock", "busy"):
        done = run_module("serving.metropolis", "run", f"--workdir={tmp_path}", "--residents=2", "--steps=5")
    assert done.returncode == 2
    assert "another process is running in" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run.db").exists()


def test_a_dead_model_server_is_said_at_once_counted_and_ends_non_zero(run_module, tmp_path):
    sizes = (f"--workdir={tmp_path}", "--residents=2", "--steps=130", "--retries=0", "--timeout_s=2")
    done = run_module("serving.metropolis", "run", "--llm=http", "--url=http://127.0.0.1:9/v1", *sizes)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"warning: \w+ at step \d+ got no answer", done.stdout)
    assert re.search(r"warning: (\d+) of \1 calls failed", done.stderr)
    assert "http://127.0.0.1:9/v1 answered no call" in done.stderr
    assert json.loads((tmp_path / "run.json").read_text())["fallbacks"] > 0


def test_the_page_about_an_own_world_is_a_program_whose_run_is_audited_and_drawn(run_module, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    (tmp_path / "world.py").write_text(code)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "world.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    checked = run_module("serving.metropolis", "check", f"--workdir={tmp_path}")
    assert "320 agent-steps: every view, move and write is as in lock-step" in checked.stdout, checked.stderr
    drawn = run_module("serving.metropolis", "replay", f"--workdir={tmp_path}")
    assert drawn.returncode == 0, drawn.stderr
    assert "heard it" in (tmp_path / "replay.html").read_text()
