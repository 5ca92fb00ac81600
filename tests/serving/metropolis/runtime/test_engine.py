"""Faults, resuming, barriers, births and deaths, and the lead of a fast agent."""

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from mixattn.evals.llm import CallFailed, Divergence, Scripted
from serving.metropolis import (
    Aborted,
    Body,
    CausalityError,
    Grid,
    InMemoryStore,
    Intent,
    Reach,
    RetryPolicy,
    Simulation,
    SqliteStore,
    StepOutcome,
    Write,
)
from serving.metropolis.runtime.audit import audit
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.schedule.rules import in_place
from serving.metropolis.schedule.space import METRICS
from serving.metropolis.world import Birth
from tests.serving.metropolis.example_worlds import (
    Case,
    MarkWorld,
    Nursery,
    RandomLatencyModel,
    Wanderer,
    build,
    build_nursery,
    grid_ball,
    max_lead,
    record_run,
    run_case,
    same_end,
)

CASE = Case(5)


# ---- faults ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_results_do_not_change_if_one_call_in_ten_fails_or_hangs(seed):
    case = Case(seed)
    want = run_case(case, "parallel_sync")
    model = RandomLatencyModel(seed, fail=0.05, hang=0.05)
    got = run_case(
        case,
        llm=model,
        retry_policy=RetryPolicy(timeout_s=60, max_retries=20, backoff_s=0.1),
        verify_views=True,
    )
    assert got.stats.retries > 0
    assert same_end(want, got)


class Mute:
    """Never answers some agents, in any attempt."""

    def __init__(self, silent, why=None):
        self._silent, self._why, self._inner = silent, why, RandomLatencyModel(1)

    async def complete(self, prompt, *, client="", **options):
        if client in self._silent:
            if self._why:
                raise self._why
            await asyncio.sleep(1e9)
        return await self._inner.complete(prompt, client=client, **options)


def test_an_agent_without_answers_falls_back_in_both_modes_alike():
    retry_policy = RetryPolicy(timeout_s=5, max_retries=1, backoff_s=0.1)
    runs = [
        run_case(CASE, mode, llm=Mute({"a01"}), retry_policy=retry_policy)
        for mode in ("parallel_sync", "metropolis")
    ]
    assert runs[1].stats.fallbacks > 0
    assert same_end(*runs)


def test_a_permanent_failure_is_not_retried():
    model = Mute({"a01"}, CallFailed("HTTP 401", transient=False))
    got = run_case(CASE, llm=model, retry_policy=RetryPolicy(max_retries=5))
    assert got.stats.fallbacks > 0
    assert got.stats.retries == 0


class Stubborn(Wanderer):
    fallback = None


def test_without_a_fallback_the_run_aborts_and_can_be_resumed():
    world, agents = build(CASE)
    stubborn = {n: Stubborn(a.around, a.move, a.write) for n, a in agents.items()}
    store = InMemoryStore()
    broken = Simulation(
        world,
        stubborn,
        Mute({"a03"}, CallFailed("no", transient=False)),
        seed=5,
        store=store,
        retry_policy=RetryPolicy(),
    )
    with pytest.raises(Aborted, match="'a03' at step"):
        run_virtual(broken.run(CASE.steps))
    want = run_case(CASE, "parallel_sync")
    world, agents = build(CASE)
    sim = Simulation(world, agents, RandomLatencyModel(1), seed=5, store=store)
    got = record_run(run_virtual(sim.run(CASE.steps, resume=True)), world, store)
    assert same_end(want, got)


def test_cancelling_leaves_no_half_commit():
    want = run_case(CASE, "parallel_sync")
    world, agents = build(CASE)
    store = InMemoryStore()

    async def cut_short():
        sim = Simulation(world, agents, RandomLatencyModel(1), seed=5, store=store)
        async with asyncio.timeout(6.5):
            await sim.run(CASE.steps)

    with pytest.raises(TimeoutError):
        run_virtual(cut_short())
    kept = len(store.log)
    assert 0 < kept < len(want.history) * CASE.steps
    world, agents = build(CASE)
    sim = Simulation(world, agents, RandomLatencyModel(2), seed=5, store=store)
    got = record_run(run_virtual(sim.run(CASE.steps, resume=True)), world, store)
    assert same_end(want, got)


# ---- resuming -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_resuming_from_any_commit_gives_the_same_end(kind, tmp_path):
    case = Case(5, agents=6, size=16, steps=8, stay_for=3)
    want = run_case(case, "parallel_sync")
    store = InMemoryStore() if kind == "memory" else SqliteStore(tmp_path / "run.db")
    whole = run_case(case, store=store, checkpoint_every=3)
    assert same_end(want, whole)
    cuts = range(len(whole.log), -1, -1 if kind == "memory" else -7)
    for cut in cuts:
        world, agents = build(case)
        sim = Simulation(world, agents, RandomLatencyModel(cut), seed=5, store=store, checkpoint_every=3)
        got = record_run(run_virtual(sim.run(case.steps, resume=True, upto=cut)), world, store)
        assert same_end(want, got), f"resumed from commit {cut}"


def test_a_resumed_run_repeats_no_call(tmp_path):
    store = InMemoryStore()
    whole = run_case(CASE, store=store)
    model = RandomLatencyModel(3)
    world, agents = build(CASE)
    sim = Simulation(world, agents, model, seed=5, store=store)
    run_virtual(sim.run(CASE.steps, resume=True, upto=len(whole.log) // 2))
    assert model.attempts == 0
    assert sim.stats.reused > 0


def test_a_call_recorded_with_another_prompt_is_a_divergence():
    store = InMemoryStore()
    run_case(CASE, store=store)

    class Changed(Wanderer):
        async def proceed(self, view, ctx):
            await ctx.llm("a new question")
            return await Wanderer.proceed(self, view, ctx)

    world, agents = build(CASE)
    changed = {n: Changed(a.around, a.move, a.write) for n, a in agents.items()}
    sim = Simulation(world, changed, RandomLatencyModel(), seed=5, store=store)
    with pytest.raises(Divergence, match="a new question"):
        run_virtual(sim.run(CASE.steps, resume=True, upto=0))


def test_a_store_with_another_run_is_refused():
    store = InMemoryStore()
    run_case(CASE, store=store)
    world, agents = build(CASE)
    with pytest.raises(ValueError, match="resume it or name another"):
        run_virtual(Simulation(world, agents, RandomLatencyModel(), seed=5, store=store).run(3))
    with pytest.raises(ValueError, match="seed"):
        run_virtual(Simulation(world, agents, RandomLatencyModel(), seed=6, store=store).run(3, resume=True))


_CHILD = """
import sys, asyncio
from serving.metropolis import Simulation, SqliteStore
from tests.serving.metropolis.example_worlds import *

class Slow(RandomLatencyModel):
    async def complete(self, prompt, **options):
        await asyncio.sleep(0.002)
        return Completion(str(stable_hash(prompt, options["seed"])), Usage(1, 1))

case = Case(5, steps=30)
world, agents = build(case)
sim = Simulation(world, agents, Slow(), seed=5, store=SqliteStore(sys.argv[1]), checkpoint_every=5)
sim.run_sync(30, resume=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_process_resumes_to_the_same_end(seed, tmp_path):
    """kill -9 at a random moment of a real process; commits with calls and completed calls are kept."""
    root = Path(__file__).resolve().parents[4]
    path, draw = tmp_path / "run.db", random.Random(seed)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    target = draw.randint(10, 40)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None and _commits(path) < target:
        time.sleep(0.005)
    assert child.poll() is None, "the child ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = SqliteStore(path)
    kept, calls = list(store.commits()), list(store.calls())
    assert len(kept) >= target
    case = Case(5, steps=30)
    world, agents = build(case)
    sim = Simulation(world, agents, RandomLatencyModel(seed), seed=5, store=store, checkpoint_every=5)
    got = record_run(run_virtual(sim.run(case.steps, resume=True)), world, store)
    assert [c.members for c in got.log[: len(kept)]] == [c.members for c in kept]
    assert {(c.agent, c.step, c.index) for c in calls} <= {(c.agent, c.step, c.index) for c in store.calls()}
    assert same_end(run_case(case, "parallel_sync"), got)
    store.close()


def _commits(path) -> int:
    import sqlite3

    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return db.execute("select count(*) from commits").fetchone()[0]
        finally:
            db.close()
    except sqlite3.OperationalError:
        return 0


# ---- leads ----------------------------------------------------------------------------------------
class Stays:
    """Calls the model every step and never moves."""

    async def proceed(self, view, ctx):
        await ctx.llm("next")
        return Intent({"to": view[3], "mark": (view[3], ctx.step)}, state="0 0")


@pytest.mark.parametrize("distance", [6, 7, 10, 25])
def test_a_slow_agent_delays_others_only_inside_its_cone(distance):
    """The fast agent reaches exactly the lead that the rule allows at its distance, then waits."""
    reach = Reach(4, 1)
    bodies = {"fast": Body((distance, 0), reach), "slow": Body((0, 0), reach)}
    world = MarkWorld(bodies, space=Grid(), around=grid_ball("chebyshev", 64))
    store = InMemoryStore()
    sim = Simulation(
        world, {"fast": Stays(), "slow": Stays()}, RandomLatencyModel(0, slow={"slow"}), store=store
    )
    run_virtual(sim.run(40))
    first = next(c.seq for c in store.log if c.members == ("slow",))
    lead = max((c.step + 1 for c in store.log[:first]), default=0)
    assert lead == max_lead(distance, in_place(reach, reach), 1) == math.ceil(distance - 4) - 1


@pytest.mark.parametrize("seed", range(3))
def test_leads_stay_within_the_bound_and_the_slowest_never_goes_back(seed):
    case = Case(seed, size=20, steps=30, agents=6)
    bases = []
    world, agents = build(case)
    sim = Simulation(
        world,
        agents,
        RandomLatencyModel(seed, slow={"a00"}),
        seed=seed,
        on_commit=lambda _: bases.append((sim.schedule.base_step, max(sim.schedule.step))),
    )
    run_virtual(sim.run(case.steps))
    assert [b for b, _ in bases] == sorted(b for b, _ in bases)
    margin = in_place(Reach(4, 1), Reach(4, 1))
    assert max(top - base for base, top in bases) <= max_lead(case.size - 1, margin, 1)


def test_a_promise_to_stay_lets_others_run_ahead():
    """Near a slow agent that promises to stay, another may run for the whole promise; otherwise not."""
    leads = {}
    for promise in (0, 30):

        class Sleeper:
            async def proceed(self, view, ctx, promise=promise):
                if ctx.step:
                    await ctx.llm("dreams")
                return Intent({"to": view[3], "mark": (view[3], 0)}, state="0 0", still_until=promise)

        bodies = {"awake": Body((7, 0), Reach(4, 1)), "asleep": Body((0, 0), Reach(4, 1))}
        world = MarkWorld(bodies, space=Grid(), around=grid_ball("chebyshev", 64))
        model, store = RandomLatencyModel(0, slow={"asleep"}), InMemoryStore()
        run_virtual(
            Simulation(
                world, {"awake": Stays(), "asleep": Sleeper()}, model, store=store, verify_views=True
            ).run(30)
        )
        second = next(c.seq for c in store.log if "asleep" in c.members and c.step == 1)
        leads[promise] = sum("awake" in c.members for c in store.log[:second])
        audit(store.log, bodies, METRICS["chebyshev"])
    assert leads[0] <= 4
    assert leads[30] == 30


def test_breaking_a_promise_is_an_error():
    class Liar:
        async def proceed(self, view, ctx):
            to = (ctx.step % 2, 0)
            return Intent({"to": to, "mark": (view[3], 0)}, still_until=10)

    world = MarkWorld({"a": Body((0, 0), Reach(1, 1))}, space=Grid(), around=grid_ball("chebyshev", 8))
    with pytest.raises(CausalityError, match="promised to stay until step 10"):
        run_virtual(Simulation(world, {"a": Liar()}, RandomLatencyModel()).run(5))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ({"to": (3, 0), "mark": ((0, 0), 1)}, "moves 3 away at step 0"),
        ({"to": (0, 0), "mark": ((2, 0), 1)}, "writes 2 away at step 0"),
    ],
)
def test_leaving_ones_reach_is_an_error_and_nothing_of_the_step_stays(action, words):
    class Jumper:
        async def proceed(self, view, ctx):
            return Intent(action)

    world = MarkWorld({"a": Body((0, 0), Reach(1, 1))}, space=Grid(), around=grid_ball("chebyshev", 8))
    store = InMemoryStore()
    with pytest.raises(CausalityError, match=words):
        run_virtual(Simulation(world, {"a": Jumper()}, RandomLatencyModel(), store=store).run(5))
    assert store.log == []
    assert world.marks == {}


# ---- barriers, births, deaths, small worlds -------------------------------------------------------
class Herald:
    """At step 5 every agent jumps to its own corner."""

    def __init__(self, inner, corner):
        self.inner, self.corner = inner, corner

    async def proceed(self, view, ctx):
        intent = await self.inner.proceed(view, ctx)
        if ctx.step != 5:
            return intent
        return Intent({**intent.action, "to": self.corner}, intent.state)


def test_at_a_barrier_all_agents_step_together_and_reach_is_unlimited():
    def one(mode):
        world, agents = build(CASE)
        heralds = {n: Herald(a, (3 * i, 0)) for i, (n, a) in enumerate(sorted(agents.items()))}
        return run_case(CASE, mode, world=world, agents=heralds, barriers={5})

    want, got = one("parallel_sync"), one("metropolis")
    assert same_end(want, got)
    assert next(c for c in got.log if c.step == 5).members == tuple(sorted(want.history))
    assert len([c for c in got.log if c.step == 4]) > 1
    world, _ = build(CASE)
    audit(got.log, world.reset(5), METRICS["chebyshev"], barriers={5})


@pytest.mark.parametrize("seed", range(6))
def test_runs_with_births_and_deaths_end_as_in_lock_step(seed):
    case = Case(seed)

    def one(mode, store=None, **options):
        nursery, family = build_nursery(case)
        return run_case(case, mode, world=nursery, agents=family, store=store, **options)

    store = InMemoryStore()
    want, got = one("parallel_sync"), one("metropolis", store, checkpoint_every=2)
    assert same_end(want, got)
    assert "a00x" in got.positions
    assert "a02" not in got.positions
    world, _ = build(case)
    audit(got.log, world.reset(seed), METRICS["chebyshev"])
    nursery, family = build_nursery(case)
    sim = Simulation(nursery, family, RandomLatencyModel(9), seed=seed, store=store, checkpoint_every=2)
    again = record_run(
        run_virtual(sim.run(case.steps, resume=True, upto=len(got.log) * 2 // 3)), nursery, store
    )
    assert same_end(want, again)


def test_a_child_that_would_reach_farther_than_its_parent_is_an_error():
    class Giant(Nursery):
        def resolve(self, step, intents):
            return StepOutcome(births=[Birth("a", "b", Body((0, 0), Reach(9, 1)))])

    world = Giant({"a": Body((0, 0), Reach(1, 1))}, space=Grid(), around=grid_ball("chebyshev", 8))
    with pytest.raises(CausalityError, match="its parent"):
        run_virtual(Simulation(world, {"a": Wanderer(world._around, 1, 1)}, RandomLatencyModel()).run(2))


@pytest.mark.parametrize(
    "case",
    [
        Case(1, agents=1),
        Case(1, agents=10, size=1),
        Case(1, (Reach(math.inf, 1),)),
        Case(1, (Reach(4, 0),)),
        Case(1, (Reach(0, 0),)),
        Case(1, steps=0),
    ],
    ids=["one agent", "one cell", "sees everything", "cannot move", "alone in the dark", "no steps"],
)
def test_the_smallest_and_widest_worlds(case):
    want, got = run_case(case, "parallel_sync"), run_case(case, latency=4, verify_views=True)
    assert same_end(want, got)
    if case.size == 1 or case.reaches[0].perceive == math.inf:
        assert [c.members for c in got.log] == [c.members for c in want.log]


def test_steps_without_calls_never_wait_for_the_event_loop():
    class Walks:
        async def proceed(self, view, ctx):
            return Intent({"to": view[3], "mark": (view[3], 1)})

    world, agents = build(CASE)
    got = run_case(CASE, world=world, agents={n: Walks() for n in agents})
    assert got.stats.elapsed_s == 0
    assert got.stats.calls == 0


def test_equality_at_a_threshold_blocks():
    """At distance exactly R + v two agents of one step move together; one tile farther they do not."""
    for distance, together in ((5, True), (6, False)):
        bodies = {"a": Body((0, 0), Reach(4, 1)), "b": Body((distance, 0), Reach(4, 1))}
        world = MarkWorld(bodies, space=Grid(), around=grid_ball("chebyshev", 64))
        store = InMemoryStore()
        run_virtual(Simulation(world, {"a": Stays(), "b": Stays()}, RandomLatencyModel(), store=store).run(1))
        assert (len(store.log) == 1) is together


# ---- the model and the event loop -----------------------------------------------------------------
def test_no_more_calls_are_in_flight_than_allowed_and_earlier_steps_go_first():
    served = []

    class Watches(RandomLatencyModel):
        async def complete(self, prompt, *, priority=0, **options):
            served.append(priority)
            return await RandomLatencyModel.complete(self, prompt, priority=priority, **options)

    world, agents = build(Case(2, agents=16, size=60))
    sim = Simulation(world, agents, Watches(), seed=2, max_in_flight=3)
    run_virtual(sim.run(12))
    assert sim.stats.peak_in_flight <= 3
    inversions = sum(a > b for a, b in pairwise(served)) / len(served)
    world, agents = build(Case(2, agents=16, size=60))
    served.clear()
    run_virtual(Simulation(world, agents, Watches(), seed=2, max_in_flight=0).run(12))
    assert inversions < sum(a > b for a, b in pairwise(served)) / len(served)


def test_random_numbers_of_a_step_depend_on_seed_agent_and_step_only():
    drawn = {}

    class Draws:
        async def proceed(self, view, ctx):
            drawn.setdefault((ctx.agent, ctx.step), set()).add(ctx.rng.random())
            return Intent({"to": view[3], "mark": (view[3], 1)})

    for mode in ("parallel_sync", "metropolis"):
        world, agents = build(CASE)
        run_case(CASE, mode, world=world, agents={n: Draws() for n in agents})
    assert all(len(values) == 1 for values in drawn.values())
    assert len({next(iter(v)) for v in drawn.values()}) == len(drawn)


def test_a_deadlock_in_virtual_time_is_an_error():
    async def never():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="no event is scheduled"):
        run_virtual(never())


def test_the_live_loop_runs_the_same_simulation():
    world, agents = build(CASE)
    from serving.metropolis.world import stable_hash

    class Quick(Scripted):
        async def complete(self, prompt, *, seed=None, **options):
            await asyncio.sleep(0)
            from mixattn.evals.llm import Completion

            return Completion(str(stable_hash(prompt, seed)))

    store = InMemoryStore()
    result = Simulation(world, agents, Quick(str), seed=5, store=store).run_sync(CASE.steps)
    assert same_end(run_case(CASE, "parallel_sync"), record_run(result, world, store))


def test_a_simulation_runs_once_and_needs_every_agent():
    world, agents = build(CASE)
    sim = Simulation(world, agents, RandomLatencyModel())
    run_virtual(sim.run(1))
    with pytest.raises(ValueError, match="has run already"):
        run_virtual(sim.run(2))
    with pytest.raises(ValueError, match="no agent of that name"):
        run_virtual(Simulation(world, {}, RandomLatencyModel()).run(1))


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "run.db").write_text("a shopping list, and not a short one " * 40)
    with pytest.raises(ValueError, match="cannot be used as a run's log"):
        SqliteStore(tmp_path / "run.db")


def test_bad_retry_policies_and_modes_are_refused():
    world, agents = build(CASE)
    with pytest.raises(ValueError, match=r"retry_policy\.max_retries is -1"):
        Simulation(world, agents, RandomLatencyModel(), retry_policy=RetryPolicy(max_retries=-1))
    with pytest.raises(ValueError, match="needs `sights`"):
        run_virtual(Simulation(world, agents, RandomLatencyModel(), mode="oracle").run(1))
    assert Write("a", (0, 0), 1).agent == "a"
