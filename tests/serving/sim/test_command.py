"""The command as a user runs it: traces, event logs that others can recompute, and one sentence for a
mistake."""

import json
import time

import pytest

from mixattn.tools import cli
from pallas_kernels import results
from serving.fair import metrics
from serving.sim import fit
from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, SimulatedEngine, run
from serving.sim.suites import fairness, overhead
from serving.sim.workload import read_trace

COMMAND = "serving.simulate"


@pytest.fixture
def trace(tmp_path):
    lines = [
        {
            "id": f"r{i}",
            "client": "ab"[i % 2],
            "arrival_s": 0.1 * i,
            "output_len": 5 + i % 7,
            "max_output": 16,
        }
        | ({"prompt": [7] * 40 + [i]} if i % 3 else {"prompt_len": 60, "prefix": [["doc", 48]]})
        for i in range(30)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_trace_is_served_and_its_event_log_gives_the_same_numbers(run_module, trace, tmp_path):
    events = tmp_path / "events.jsonl"
    flags = ["--policy=dlpm", "--memory_tok=400", "--option=quantum_tok=100", "--json", f"--events={events}"]
    done = run_module(COMMAND, f"--trace={trace}", *flags)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["runs"][0]
    assert row["finished"] == 30
    assert row["hit_rate"] > 0.3
    assert row["bound"] == 2 * (2 * 416 + 100)
    again = metrics.report(metrics.read(events))
    assert again.gap == row["backlogged_gap"]
    assert again.hit_rate == row["hit_rate"]
    assert not list(tmp_path.glob("*.partial"))


def test_weights_of_a_trace_are_shares(run_module, tmp_path):
    lines = [
        {"id": f"{c}{i}", "client": c, "arrival_s": 0.0, "prompt_len": 20, "output_len": 20, "weight": w}
        for i in range(60)
        for c, w in (("a", 1), ("b", 3))
    ]
    path = tmp_path / "weighted.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = tmp_path / "events.jsonl"
    done = run_module(COMMAND, f"--trace={path}", "--memory_tok=200", f"--events={events}", "--json")
    assert done.returncode == 0, done.stderr
    log = list(metrics.read(events))
    half = metrics.report(log[: len(log) // 2]).service
    assert half["b"] / half["a"] == pytest.approx(3, rel=0.15)


GOOD = {"id": "x", "client": "a", "arrival_s": 0, "prompt_len": 3, "output_len": 1}
BAD_LINES = {
    "{": "line 2: ",
    '{"id": "x"}': "line 2: give either prompt or prompt_len",
    json.dumps(GOOD | {"prompt": [1]}): "line 2: give either prompt or prompt_len",
    json.dumps(
        {k: v for k, v in GOOD.items() if k != "prompt_len"} | {"prompt": []}
    ): "line 2: prompt must be",
    json.dumps(GOOD | {"arrival_s": -1}): "arrival_s is -1",
    json.dumps(GOOD | {"output_len": 9, "max_output": 2}): "output_len is 9, above max_output 2",
    json.dumps(GOOD | {"output_len": 1.5}): "output_len is 1.5, not a whole number",
    json.dumps(GOOD | {"prefix": [["k", 4]]}): "the prefix has 4 tokens, prompt_len is 3",
    json.dumps(GOOD | {"speed": 2}): "unknown field speed",
    json.dumps(GOOD | {"id": "r0"}): "'r0' is there already",
    json.dumps(GOOD | {"weight": 0}): "weight is 0",
}


def with_line(trace, line):
    good = trace.read_text().splitlines()
    trace.write_text("\n".join([good[0], line, *good[1:]]) + "\n")


@pytest.mark.parametrize(("line", "says"), BAD_LINES.items())
def test_a_bad_line_is_named_and_nothing_is_read(trace, line, says):
    with_line(trace, line)
    with pytest.raises(ValueError, match=says) as caught:
        read_trace(trace)
    assert "line 2" in str(caught.value)


def test_a_request_that_never_fits_stops_the_run_before_it_starts(trace):
    with_line(trace, json.dumps(GOOD | {"prompt_len": 9000}))
    jobs = read_trace(trace).jobs
    experiment = FairnessExperiment(jobs=lambda seed: jobs, server=SimulatedEngine(memory_tok=400))
    seen = []
    with pytest.raises(ValueError, match="request 'x' of 'a' needs 9001 tokens"):
        run(experiment, experiment.runs[0], jobs=jobs, log=seen.append)
    assert not seen


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy=sjf"], "unknown policy 'sjf'"),
        (["--option=speed=3"], "policy 'vtc' has no option speed; known: "),
        (["--admission=never"], "unknown admission 'never'; known: reserve, peak, optimistic"),
        (
            ["--suite=overhead"],
            "give one of --config, --trace, --suite and --fit; given: --trace and --suite",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(run_module, trace, tmp_path, flags, says):
    events = tmp_path / "events.jsonl"
    done = run_module(COMMAND, f"--trace={trace}", f"--events={events}", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [trace]


def test_an_experiment_is_a_config(run_module):
    done = run_module(COMMAND, "--config=configs/fair_vtc.py:E9", "--config.demand_s=120", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [row["run"] for row in shown["runs"]] == ["vtc", "wvtc"]
    weighted = [c["service_per_s"] for c in shown["clients"] if c["run"] == "wvtc"]
    assert weighted == sorted(weighted)


def test_the_cost_model_is_found_again_in_the_log_it_made():
    from tests.serving.sim.test_simulator import job, simulate

    jobs = [job(i, at_s=0.05 * i, prompt=20 + i % 50, output=10 + i % 40) for i in range(80)]
    log, _ = simulate(jobs, memory_tok=2000, steps=(1,))
    found = fit.of_events(log)
    assert found.median_error < 0.02
    assert found.cost.step_s == pytest.approx(StepCost().step_s, rel=0.05)
    assert found.cost.row_s == pytest.approx(StepCost().row_s, rel=0.3)
    with pytest.raises(ValueError, match="a fit needs 20"):
        fit.of_events(log[:10])


def test_a_suite_leaves_tables_that_say_where_they_come_from_and_a_picture(tmp_path):
    ticks = iter(range(10**9))
    fairness.run_suite(tmp_path, only=["E5"], clock=lambda: float(next(ticks)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "E5.csv",
        "E5.png",
        "E5_clients.csv",
        "E5_paper.csv",
        "paper.csv",
    ]
    about, device, versions, commit, *_ = (tmp_path / "E5.csv").read_text().splitlines()
    assert about.startswith("# about: E5: Isolation")
    assert device == "# device: none (virtual time)"
    assert versions.startswith("# versions: python")
    assert commit.startswith("# commit:")
    rows = results.read_csv(tmp_path / "E5.csv")
    assert [row["run"] for row in rows] == ["fcfs", "vtc"]
    with pytest.raises(ValueError, match="unknown experiment E99; known: E17"):
        fairness.experiments(["E99"])


def test_every_experiment_is_a_config_that_checks():
    for experiment in fairness.experiments():
        cli.check_tree(experiment)
        assert experiment.runs


def test_growth_exponents_are_slopes():
    assert overhead.growth([10, 100, 1000], [5.0, 5.0, 5.0]) == pytest.approx(0)
    assert overhead.growth([10, 100, 1000], [1.0, 10.0, 100.0]) == pytest.approx(1)


@pytest.mark.long
def test_a_decision_among_thousands_costs_little_more_than_among_a_hundred():
    """No scan of all that wait hides in any policy: fifty times more may cost a few times more, not fifty."""
    for name in overhead.AGNOSTIC:
        few = min(overhead.decisions(name, 100, 10, time.process_time, 60)[0] for _ in range(2))
        many = min(overhead.decisions(name, 5000, 500, time.process_time, 60)[0] for _ in range(2))
        assert many < 12 * few
    few = min(overhead.passes("dlpm", 60, time.process_time, 30)[1] for _ in range(2))
    assert overhead.passes("dlpm", 3000, time.process_time, 30)[1] < 12 * few
