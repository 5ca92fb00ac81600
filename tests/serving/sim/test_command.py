"""The command as a user runs it: traces, event logs that others can recompute, and one sentence for a
mistake."""

import dataclasses
import json
import math
import re
import time

import pytest

from mixattn.tools import cli
from serving import fair
from serving.fair import metrics
from serving.sim import fit, seeds
from serving.sim.cost import StepCost
from serving.sim.experiment import FairnessExperiment, SimulatedEngine, run
from serving.sim.suites import fairness, overhead, paper, pictures, table
from serving.sim.suites.table import TableRow
from serving.sim.trace_experiment import parse_cost, parse_options, policy_runs
from serving.sim.traces import TraceOptions, read_trace

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
    flags = [
        "--policies=dlpm",
        "--memory_tok=400",
        "--option=quantum_tok=100",
        "--json",
        f"--events={events}",
    ]
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
    json.dumps(GOOD | {"id": "r0"}): "'r0' appears twice",
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


def test_in_an_experiment_a_request_that_never_fits_stops_the_run_before_it_starts(trace):
    with_line(trace, json.dumps(GOOD | {"prompt_len": 9000}))
    requests = read_trace(trace).requests
    experiment = FairnessExperiment(requests=lambda seed: requests, server=SimulatedEngine(memory_tok=400))
    seen = []
    with pytest.raises(ValueError, match="request 'x' of 'a' needs 9001 tokens"):
        run(experiment, experiment.runs[0], requests=requests, log=seen.append)
    assert not seen


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policies=sjf"], "unknown policy 'sjf'"),
        (["--option=speed=3"], "policy vtc has no option speed; known: "),
        (["--policies=fcfs", "--option=weights={'a': 2}"], "client 'a' has weight 2, but Fcfs cannot share"),
        (["--cost=step_s=-1"], "cost.step_s is -1; it must be at least 0"),
        (["--memory_tok=30"], "holds no request; 30 rows, 0 requests; 30 dropped (larger than the memory)"),
        (
            ["--suite=overhead"],
            "--suite, --draw, --fit, --examples and --decisions; given: --trace and --suite",
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
    assert [row["run"] for row in shown["runs"]] == ["vtc, no weights", "wvtc", "drr", "dlpm"]
    weighted = [c["service_per_s"] for c in shown["clients"] if c["run"] == "wvtc"]
    assert weighted == sorted(weighted)


def test_the_cost_model_is_found_again_in_the_log_it_made():
    from tests.serving.sim.test_simulator import request, simulate

    requests = [request(i, at_s=0.05 * i, prompt=20 + i % 50, output=10 + i % 40) for i in range(80)]
    log, _ = simulate(requests, memory_tok=2000, steps=(1,))
    found = fit.fit_step_cost(log)
    assert found.median_error < 0.02
    assert found.cost.step_s == pytest.approx(StepCost().step_s, rel=0.05)
    assert found.cost.row_s == pytest.approx(StepCost().row_s, rel=0.3)
    with pytest.raises(ValueError, match="a fit needs 20"):
        fit.fit_step_cost(log[:10])


def ticking():
    ticks = iter(range(10**9))
    return lambda: float(next(ticks))


def test_a_suite_fills_one_table_that_says_where_its_rows_come_from(tmp_path):
    fairness.run_suite(tmp_path, only=["E5"], clock=ticking())
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]
    head, rows = table.read(tmp_path / "results.csv")
    assert head["E5"].startswith("Isolation")
    assert "; seed 0; none (virtual time); python " in head["E5"]
    assert "; commit " in head["E5"]
    assert list(dict.fromkeys(row.policy for row in rows)) == ["fcfs", "vtc"]
    assert {row.client for row in rows} == {"", "c0", "c1"}
    (figure,) = (r for r in rows if (r.policy, r.client, r.metric) == ("vtc", "c0", "ttft_mean_s"))
    assert float(figure.paper) == 0.3
    assert float(figure.ratio) == pytest.approx(float(figure.value) / 0.3, rel=0.01)
    with pytest.raises(ValueError, match="unknown experiment E99; known: E17-hot"):
        fairness.experiments(["E99"])


def test_an_update_replaces_the_rows_of_its_experiments_only(tmp_path):
    first = [TableRow(id, "vtc", "", "finished", 1) for id in ("E1", "E2", "E3")]
    table.update(tmp_path, {"E1": "one", "E2": "two", "E3": "three"}, first)
    again = [TableRow("E2", "fcfs", "a", "finished", 2, 4, 0.5), TableRow("E4", "vtc", "", "finished", 3)]
    table.update(tmp_path, {"E2": "two: again", "E4": "four"}, again)
    head, rows = table.read(tmp_path / "results.csv")
    assert head == {"E1": "one", "E2": "two: again", "E3": "three", "E4": "four"}
    want = [("E1", "vtc", "1"), ("E2", "fcfs", "2"), ("E3", "vtc", "1"), ("E4", "vtc", "3")]
    assert [(row.experiment, row.policy, row.value) for row in rows] == want
    assert (rows[1].client, rows[1].paper, rows[1].ratio) == ("a", "4", "0.5")


def test_the_committed_table_holds_every_experiment():
    head, rows = table.read(fairness.ROOT / "results" / "fairness" / "results.csv")
    assert {experiment.id for experiment in fairness.experiments()} <= set(head)
    assert {row.experiment for row in rows} == set(head)


@pytest.mark.parametrize("id", ["E9", "E3", "E22"])
def test_a_picture_is_a_vector_drawing_and_leaves_the_table_alone(tmp_path, id):
    (experiment,) = fairness.experiments([id])
    experiment.demand_s = 90.0
    first = experiment.seed
    short = dataclasses.replace(experiment, requests=lambda seed: experiment.workload(seed)[:150])
    by_run = {}
    for _, outcome in seeds.outcomes(short, (first, first + 1)):
        by_run.setdefault(outcome.run.name, []).append(outcome)
    for name in ("a", "b"):
        pictures.draw(tmp_path / f"{name}.svg", short, by_run)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.startswith("<?xml")
    assert "image/png" not in drawn
    assert drawn == (tmp_path / "b.svg").read_text(), "the same figures, the same bytes"
    assert len(list(tmp_path.iterdir())) == 2


def test_help_shows_each_example_on_a_line_of_its_own(run_module):
    lines = run_module(COMMAND, "--help").stdout.splitlines()
    examples = [line.strip() for line in lines if "python -m" in line]
    assert len(examples) == 13
    assert all(example.startswith("python -m serving.simulate --") for example in examples)


def test_a_structured_workload_shares_prefixes():
    (experiment,) = fairness.experiments(["E15"])
    requests = experiment.workload()
    assert {r.client for r in requests} == {"tree", "chat", "docs", "judge", "judge2", "cold"}
    assert all(r.prompt_tok + r.output_tok == len(r.tokens) for r in requests)


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
        few = min(overhead.decision_cost(name, 100, 10, time.process_time, 60)[0] for _ in range(2))
        many = min(overhead.decision_cost(name, 5000, 500, time.process_time, 60)[0] for _ in range(2))
        assert many < 12 * few
    few = min(overhead.pass_cost("dlpm", 60, time.process_time, 30)[1] for _ in range(2))
    assert overhead.pass_cost("dlpm", 3000, time.process_time, 30)[1] < 12 * few


def test_several_policies_and_seeds_on_one_trace_with_intervals_and_a_csv(run_module, trace, tmp_path):
    flags = [
        "--policies=fcfs,vtc,dlpm",
        "--clients=zipf:4",
        "--rate=20",
        "--seeds=3",
        f"--csv={tmp_path}/out.csv",
    ]
    flags += ["--option=quantum_tok=100", "--memory_tok=400", "--ttft_slo_s=2", "--cost=step_s=0.05,row_s=0"]
    done = run_module(COMMAND, f"--trace={trace}", *flags, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [row["run"] for row in shown["runs"]] == ["fcfs", "vtc", "dlpm"]
    assert shown["notes"][0] == "30 rows, 30 requests"
    assert {row["metric"]: row["seeds"] for row in shown["intervals"]}["tok_per_s"] == 3
    rows = [line for line in (tmp_path / "out.csv").read_text().splitlines() if not line.startswith("#")]
    assert rows[0] == "policy,metric,mean,low,high,seeds"
    assert sum(row.startswith("vtc,lag,") for row in rows) == 1
    attained = [row["attainment"] for row in shown["runs"]]
    assert all(0 < share <= 1 for share in attained)


def test_a_cluster_is_two_flags(run_module, trace):
    flags = ["--workers=3", "--router=d2lpm", "--router_option=max_lead=2", "--policies=dlpm", "--json"]
    done = run_module(COMMAND, f"--trace={trace}", *flags)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["runs"][0]
    assert row["finished"] == 30
    assert row["busiest_share"] < 0.6


def test_a_prompt_in_chunks_is_charged_to_the_steps_that_computed_it():
    """Prompts of 90 tokens at 30 a step, beside rows that decode: the true constants come back."""
    true = StepCost(prefill_s=1e-4, step_s=2e-3, row_s=5e-4, context_s=0.0)
    log, at_s, decoding = [], 0.0, 0
    for i in range(40):
        name = f"r{i}"
        log.append({"event": "admit", "t": at_s, "id": name, "client": "a", "extend": 90, "hit": 0})
        for chunk in range(3):
            at_s += 30 * true.prefill_s + true.decode(decoding, 0, 1)
            first = chunk == 2
            if first:
                log.append({"event": "first_token", "t": at_s, "id": name, "client": "a"})
            if decoding or first:
                log.append({"event": "tokens", "t": at_s, "counts": {"a": decoding + first}})
        decoding += 1
        for _ in range(i % 3):
            at_s += true.decode(decoding, 0, 1)
            log.append({"event": "tokens", "t": at_s, "counts": {"a": decoding}})
        if i % 5 == 4:
            log += [{"event": "finish", "t": at_s, "id": f"r{j}", "client": "a"} for j in range(i - 4, i)]
            decoding -= 4
    found = fit.fit_step_cost(log)
    assert found.median_error < 1e-6
    assert dataclasses.asdict(found.cost) == pytest.approx(dataclasses.asdict(true), abs=1e-9)


def test_more_clients_than_fit_a_screen_are_shown_from_both_ends(run_module, tmp_path):
    lines = [GOOD | {"id": f"r{i}", "client": f"c{i:03}", "output_len": 1 + i} for i in range(90)]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_module(COMMAND, f"--trace={path}")
    assert done.returncode == 0, done.stderr
    assert "the 10 with the most and the 10 with the least" in done.stdout
    assert "c089" in done.stdout
    assert "c000" in done.stdout
    assert "c050" not in done.stdout
    assert "too short for figures that leave out the first 30 s" in " ".join(done.stdout.split())


def test_a_trace_shorter_than_the_warm_up_measures_nothing_instead_of_zero(trace):
    found = read_trace(trace)
    experiment = FairnessExperiment(requests=lambda seed: found.requests, demand_s=3.0)
    row = run(experiment, experiment.runs[0]).row()
    assert math.isnan(row["accumulated_gap"])
    assert math.isnan(row["avg_diff"])
    assert row["finished"] == 30


def test_a_figure_outside_the_tolerance_has_a_reason_beside_it():
    rows = paper.results.read_csv(fairness.ROOT / "results" / "fairness" / "paper.csv")
    assert {row["experiment"] for row in rows} == {e.id for e in fairness.experiments() if e.paper}
    for row in rows:
        ratio = float(row["ratio"])
        tolerance = paper.TOLERANCE.get(row["metric"], paper.OTHER_TOLERANCE)
        assert (abs(ratio - 1) <= tolerance) == (row["deviation"] == ""), row
        assert row["deviation"] != "not explained", row
        assert int(row["seeds"]) >= 5
        assert not row["low"] or float(row["low"]) <= float(row["mean"]) <= float(row["high"])


def test_paper_rows_stand_beside_the_papers_figures(tmp_path):
    (experiment,) = fairness.experiments(["E5"])
    paper.run_suite(tmp_path, only=["E5", "E9"], seeds=2, clock=ticking())
    rows = paper.results.read_csv(tmp_path / "paper.csv")
    assert [(row["policy"], row["client"], row["seeds"]) for row in rows] == [
        ("vtc", "c0", "2"),
        ("fcfs", "c0", "2"),
    ]
    assert float(rows[0]["paper"]) == 0.3
    assert experiment.paper


MISTAKES = {
    "policy fcfs has no option lift": lambda path: policy_runs(["vtc", "fcfs:lift=fluid"], {}, {}),
    "policy vtc and fcfs has no option x": lambda path: policy_runs(["vtc:lift=fluid", "fcfs"], {"x": 1}, {}),
    "option 'speed' is not NAME=VALUE": lambda path: parse_options(["speed"]),
    "cost has no part speed; known: prefill_s, step_s, row_s, context_s": lambda path: parse_cost("speed=1"),
    "cost.step_s is 'fast', not a number of seconds": lambda path: parse_cost("step_s=fast"),
    "no column 'model'; found client; --clients=hash:N makes N clients up": lambda path: read_trace(
        path, "own", TraceOptions(clients="column:model")
    ),
    "hash:N needs a number of clients of at least 1": lambda path: read_trace(
        path, "own", TraceOptions(clients="hash:none")
    ),
    "known: column, column:NAME, hash:N, zipf:N": lambda path: read_trace(
        path, "own", TraceOptions(clients="many")
    ),
    "rate is 0.0; it must be above 0": lambda path: TraceOptions(rate=0.0),
    "oversize is 'cut'; known: drop, clip": lambda path: TraceOptions(oversize="cut"),
    "'sticky' has no option x": lambda path: fair.make("sticky", x=1),
}


@pytest.mark.parametrize("says", MISTAKES)
def test_a_wrong_choice_is_answered_with_the_right_ones(trace, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        MISTAKES[says](trace)


def test_a_policy_may_have_options_of_its_own():
    names = ["vtc", "vtc:lift=fluid", "dlpm:quantum_tok=9:aging_tok=3", "fcfs"]
    runs, blind = policy_runs(names, {"output_weight": 3}, {"a": 2})
    assert [run.name for run in runs] == names
    assert [run.options.get("lift") for run in runs] == [None, "fluid", None, None]
    assert [run.options.get("output_weight") for run in runs] == [3, 3, 3, 3]
    assert runs[2].options["quantum_tok"] == 9
    assert blind == ["fcfs"]
    assert runs[0].options["weights"] == {"a": 2}


def test_a_fit_that_was_printed_is_read_back(tmp_path):
    (tmp_path / "cost.json").write_text(json.dumps(dataclasses.asdict(StepCost(step_s=0.5)) | {"steps": 40}))
    assert parse_cost(str(tmp_path / "cost.json")) == StepCost(step_s=0.5)
    assert parse_cost("row_s=0,step_s=0.1") == StepCost(step_s=0.1, row_s=0)
    (tmp_path / "cost.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"cost has no part \[1\]"):
        parse_cost(str(tmp_path / "cost.json"))
