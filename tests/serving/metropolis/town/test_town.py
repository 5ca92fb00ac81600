"""The town: same story in any order, commands a user types, and a page that no resident can break."""

import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pallas_kernels.results import read_csv
from serving.metropolis import InMemoryStore, Simulation, SqliteStore
from serving.metropolis.runtime import replay_page
from serving.metropolis.runtime.audit import Violation, audit
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.retry import RetryPolicy
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer
from serving.metropolis.runtime.store import outcome_from_json, outcome_to_json
from serving.metropolis.schedule.space import chebyshev
from serving.metropolis.town import PEOPLE, clock, prompts, step_at, town
from serving.metropolis.town.streets import Streets
from tests.serving.metropolis.example_worlds import RandomLatencyModel

STEPS = 200


def live(mode, residents=10, llm=None, store=None, **options):
    world, agents = town(residents)
    llm = llm or SimulatedServer(ServerConfig(replicas=2), prompts.reply)
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
    bodies = town(10)[0].reset(0)
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
    at = {n: b.pos for n, b in town(10)[0].reset(0).items()}
    assert len(set(at.values())) == len(at)
    for commit in store.log:
        for pos in commit.outcome.moves.values():
            assert world.map.open(pos)
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
    streets = Streets()
    text = "Sure!\n7:30 - café linden: coffee\n25:00 Park: no\n08:15 Mars: no\n- **09:00 Library**: read maps"
    assert prompts.read_plan(text, streets) == [
        [step_at(7, 30), "Café Linden", "coffee"],
        [step_at(9, 0), "Library", "read maps"],
    ]
    assert clock(step_at(13, 45)) == "13:45"


def test_every_place_can_be_walked_to_from_every_bed():
    world, _ = town(len(PEOPLE))
    beds = [b.pos for b in world.reset(0).values()]
    for place in world.map.places:
        for spot in world.map.spots(place.name)[::7]:
            for bed in beds:
                assert bed == spot or world.map.toward(bed, spot)


def test_a_town_has_a_bed_for_everyone_and_no_more():
    with pytest.raises(ValueError, match="beds for 1 to 25"):
        town(26)


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


# ---- commands -----------------------------------------------------------------------------------------
def test_run_check_and_replay_as_a_user_would(run_module, tmp_path):
    work = f"--workdir={tmp_path}"
    first = run_module("serving.metropolis", "run", work, "--residents=4", "--steps=40", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["agent_steps"] == 160
    again = run_module("serving.metropolis", "run", work, "--residents=4", "--steps=60")
    assert again.returncode == 2
    assert "resume it or name another one" in again.stderr
    more = run_module("serving.metropolis", "run", work, "--residents=4", "--steps=60", "--resume", "--json")
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["agent_steps"] == 80
    assert "240 agent-steps" in run_module("serving.metropolis", "check", work).stdout
    assert run_module("serving.metropolis", "replay", work).returncode == 0
    assert (tmp_path / "replay.html").stat().st_size > 20_000


def test_the_town_runs_against_any_openai_compatible_server(run_module, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompts_seen.append(asked)
            answer = {"choices": [{"text": prompts.reply(asked["prompt"], asked["seed"])}]}
            data = json.dumps(answer).encode()
            self.send_response(200 if len(prompts_seen) % 7 else 503)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    prompts_seen: list[dict] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"--url=http://127.0.0.1:{server.server_port}/v1"
    sizes = (f"--workdir={tmp_path}", "--residents=5", "--steps=120", "--llm=http", "--json")
    done = run_module("serving.metropolis", "run", url, *sizes)
    server.shutdown()
    server.server_close()
    thread.join()
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["agent_steps"] == 600
    assert figures["retries"] == len(prompts_seen) // 7
    assert {p["user"] for p in prompts_seen} <= {person.name for person in PEOPLE[:5]}
    assert all(p["prompt"].startswith("Task: ") and p["priority"] < 120 for p in prompts_seen)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fly"], "'fly' is not one of run, replay"),
        (["run", "--residents=99"], "beds for 1 to 25"),
        (["run", "--steps=0"], "at least 1"),
        (["check", "--workdir=nowhere"], "does not exist"),
        (["experiment"], "--config is missing"),
        (["simulate", "--trace=missing.jsonl"], "missing.jsonl"),
    ],
)
def test_mistakes_get_one_sentence(args, words, run_module, tmp_path):
    if args[0] == "run":
        args = [*args, f"--workdir={tmp_path}"]
    done = run_module("serving.metropolis", *args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches(run_module):
    assert "simulate --trace" in run_module("serving.metropolis", "--help").stdout


def test_a_trace_is_written_and_simulated(run_module, tmp_path):
    path = tmp_path / "day.jsonl"
    made = run_module("serving.metropolis", "trace", f"--out={path}", "--agents=6")
    assert made.returncode == 0, made.stderr
    done = run_module("serving.metropolis", "simulate", f"--trace={path}", "--replicas=2", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows["critical_s"] <= rows["oracle"]["elapsed_s"] * 1.02
    assert rows["metropolis"]["elapsed_s"] <= rows["parallel_sync"]["elapsed_s"]


def test_an_hour_without_calls_has_no_ratios(tmp_path):
    from serving.metropolis.experiments.suite import MetropolisExperiment, run, summarise

    night = MetropolisExperiment(
        "night", hours=(2,), modes=("parallel_sync", "metropolis"), seeds=1, out=str(tmp_path)
    )
    rows = summarise(read_csv(run(night)))
    assert [r["elapsed_s"] for r in rows] == [0, 0]
    assert not any("vs_sync" in r for r in rows)


def test_an_experiment_goes_on_where_it_stopped_and_refuses_another_recipe(tmp_path):
    from serving.metropolis.experiments.suite import MetropolisExperiment, run, summarise

    one = MetropolisExperiment(
        "one", agents=(4,), modes=("parallel_sync", "metropolis"), seeds=2, out=str(tmp_path)
    )
    path = run(one)
    whole = path.read_text()
    assert len(read_csv(path)) == 4
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    run(one)
    assert sorted(map(str, read_csv(path))) == sorted(map(str, read_csv(run(one))))
    metro = next(r for r in summarise(read_csv(path)) if r["mode"] == "metropolis")
    assert metro["seeds"] == 2
    assert metro["vs_sync"] >= 1
    with pytest.raises(ValueError, match="another recipe"):
        run(MetropolisExperiment("one", agents=(5,), seeds=2, out=str(tmp_path)))
