"""The town: same story in any order, commands a user types, and a page that no resident can break."""

import json
import shutil
import subprocess

import pytest

from mixattn.evals.llm import RetryPolicy
from serving.metropolis import InMemoryStore, Simulation, SqliteStore
from serving.metropolis.runtime import replay_page
from serving.metropolis.runtime.audit import Violation, audit
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.runtime.store import outcome_from_json, outcome_to_json
from serving.metropolis.schedule.space import chebyshev
from serving.metropolis.town import PEOPLE, make_town, prompts, step_at, stub_model, time_of_day
from serving.metropolis.town.town_map import TownMap
from tests.serving.metropolis.example_worlds import RandomLatencyModel

STEPS = 200


def live(mode, residents=10, llm=None, store=None, **options):
    world, agents = make_town(residents)
    llm = llm or SimulatedServer(ServerConfig(replicas=2), stub_model.reply)
    store = store or InMemoryStore()
    result = run_virtual(Simulation(world, agents, llm, mode=mode, store=store, **options).run(STEPS))
    return result, world, store


@pytest.fixture(scope="module")
def lived():
    return live("metropolis", verify_views=True)


def test_the_towns_story_is_the_same_in_any_order(lived):
    result, world, _ = lived
    want, lockstep, _ = live("parallel_sync")
    assert (want.positions, want.states) == (result.positions, result.states)
    assert lockstep.snapshot() == world.snapshot()
    assert result.stats.elapsed_s < want.stats.elapsed_s


def test_a_towns_log_passes_the_audit_and_a_forged_one_does_not(lived):
    _, _, store = lived
    bodies = make_town(10)[0].reset(0)
    assert audit(store.log, bodies, chebyshev) == 10 * STEPS
    swapped = [*store.log]
    late = next(i for i, c in enumerate(swapped) if i and set(c.members) & set(swapped[i - 1].members))
    swapped[late - 1], swapped[late] = swapped[late], swapped[late - 1]
    with pytest.raises(Violation):
        audit(swapped, bodies, chebyshev)


def test_residents_plan_walk_talk_and_remember(lived):
    result, _, store = lived
    looks = [value for c in store.log for _, _, value in c.outcome.writes]
    talks = [look for look in looks if look.get("said")]
    assert len(talks) >= 6
    assert any("walking to" in look.get("doing", "") for look in looks)
    minds = result.states.values()
    assert all(mind["plan"] or mind["memory"] for mind in minds)
    assert any(" saw " in f" {text}" for mind in minds for _, text, _ in mind["memory"])
    assert any(
        len({n for _, text, _ in mind["memory"] for n in result.states if n in text}) for mind in minds
    )


def test_nobody_shares_a_tile_or_stands_in_a_wall(lived):
    _, world, store = lived
    at = {n: b.pos for n, b in make_town(10)[0].reset(0).items()}
    assert len(set(at.values())) == len(at)
    for commit in store.log:
        for pos in commit.outcome.moves.values():
            assert world.map.is_walkable(pos)
    assert len({tuple(pos) for pos in world.snapshot()["at"].values()}) == len(at)


def test_residents_without_a_model_still_live_their_day():
    result, _, _ = live(
        "metropolis",
        4,
        RandomLatencyModel(0, fail=1.0),
        retry_policy=RetryPolicy(max_retries=0),
        checkpoint_every=20,
    )
    assert result.stats.fallbacks > 0
    assert len({tuple(p) for p in result.positions.values()}) == 4


class Babbler:
    """A model that answers everything with things no prompt asked for."""

    TEXT = '</script><img src=x onerror=alert(1)> "\u2028 \\ 99:99 Atlantis: sleep\n07:05 Park: <b>nap</b>'

    async def complete(self, prompt, **options):
        from mixattn.evals.llm import Completion

        return Completion("yes " + self.TEXT)


def test_residents_survive_a_model_that_answers_nonsense():
    result, _, store = live("metropolis", 6, Babbler())
    assert result.steps == dict.fromkeys(result.positions, STEPS)
    assert any("onerror" in json.dumps(outcome_to_json(c.outcome)) for c in store.log)


def test_plans_are_read_leniently():
    town_map = TownMap()
    text = "Sure!\n7:30 - café linden: coffee\n25:00 Park: no\n08:15 Mars: no\n- **09:00 Library**: read maps"
    assert prompts.parse_plan(text, town_map) == [
        [step_at(7, 30), "Café Linden", "coffee"],
        [step_at(9, 0), "Library", "read maps"],
    ]
    assert time_of_day(step_at(13, 45)) == "13:45"


def test_every_place_can_be_walked_to_from_every_bed():
    world, _ = make_town(len(PEOPLE))
    beds = [b.pos for b in world.reset(0).values()]
    for place in world.map.places:
        for spot in world.map.walkable_tiles(place.name)[::7]:
            for bed in beds:
                assert bed == spot or world.map.next_tiles(bed, spot)


def test_a_town_has_a_bed_for_everyone_and_no_more():
    with pytest.raises(ValueError, match="beds for 1 to 25"):
        make_town(26)


def test_outcomes_survive_json(lived):
    _, _, store = lived
    for commit in store.log[::20]:
        again = outcome_from_json(json.loads(json.dumps(outcome_to_json(commit.outcome))))
        assert again.moves == dict(commit.outcome.moves)
        assert tuple(again.writes) == tuple(commit.outcome.writes)


# ---- the page -----------------------------------------------------------------------------------------
@pytest.fixture
def babbled(tmp_path):
    store = SqliteStore(tmp_path / "run.db")
    store.begin({"residents": 6})
    live("metropolis", 6, Babbler(), store)
    replay_page.write(store, tmp_path / "replay.html")
    return tmp_path / "replay.html"


def test_nothing_a_model_wrote_can_leave_the_data_element(babbled):
    text = babbled.read_text()
    assert "onerror" in text
    assert text.count("</script>") == 2
    assert "<img" not in text
    assert "http" not in text.split("__", 1)[0].replace("http-equiv", "")
    data = text.split('id="data">')[1].split("</script>")[0]
    assert "</script>" in json.dumps(json.loads(data))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_run_and_runs_no_ones_script(babbled, tmp_path):
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        ["chromium", *flags, "--virtual-time-budget=3000", "--dump-dom", f"file://{babbled}#commit=500"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "talking with" in shown or "planning" in shown
    assert 'id="base">07:' in shown
    assert "<img" not in shown
    assert "&lt;/script&gt;&lt;img" in shown  # on screen as text


def test_an_empty_log_makes_no_page(tmp_path):
    store = InMemoryStore()
    store.begin({"residents": 2, "seed": 0, "mode": "metropolis"})
    with pytest.raises(ValueError, match="no commits"):
        replay_page.write(store, tmp_path / "replay.html")
    assert list(tmp_path.iterdir()) == []
