"""Traces: what the generator promises, files, the importer, and bounds that nothing beats."""

import json
from itertools import pairwise

import pytest

from serving.metropolis.experiments.bounds import (
    critical_path,
    mean_sights,
    sights,
    token_cost,
    unloaded_latency,
)
from serving.metropolis.experiments.simulate import MetropolisVariant, simulate_trace, trace_bounds
from serving.metropolis.runtime.server import ServerConfig
from serving.metropolis.schedule.rules import Reach
from serving.metropolis.worlds.synthetic import SyntheticTraceConfig, generate_trace
from serving.metropolis.worlds.trace import (
    RecordedCall,
    build_trace,
    import_events,
    load_trace,
    save_trace,
    stays_until,
)

SERVER = ServerConfig(replicas=4)


@pytest.fixture(scope="session")
def busy():
    return generate_trace(SyntheticTraceConfig(hour=12))


def test_equal_configs_draw_equal_traces_and_other_seeds_do_not(busy):
    assert generate_trace(SyntheticTraceConfig(hour=12)) == busy
    assert generate_trace(SyntheticTraceConfig(hour=12, seed=1)) != busy


def test_the_busy_hour_is_near_the_published_figures():
    """5,000 calls, 642.6 prompt and 21.9 output tokens, 1.85 agents in sight: means over five seeds."""
    traces = [generate_trace(SyntheticTraceConfig(hour=12, seed=seed)) for seed in range(5)]
    calls = [t.call_count for t in traces]
    assert sum(calls) / 5 == pytest.approx(5000, rel=0.1)
    assert sum(t.tokens()[0] for t in traces) / sum(calls) == pytest.approx(642.6, rel=0.05)
    assert sum(t.tokens()[1] for t in traces) / sum(calls) == pytest.approx(21.9, rel=0.15)
    assert sum(mean_sights(t, sights(t)) for t in traces) / 5 == pytest.approx(1.85, rel=0.05)


def test_nobody_calls_at_night_and_few_at_dawn():
    assert generate_trace(SyntheticTraceConfig(hour=2)).call_count == 0
    assert 0 < generate_trace(SyntheticTraceConfig(hour=6)).call_count < 1500


def test_nobody_moves_farther_than_a_tile_and_towns_keep_apart():
    trace = generate_trace(SyntheticTraceConfig(agents=50, hour=12))
    for x, y in zip(trace.x, trace.y):
        assert max(abs(a - b) for a, b in pairwise(x)) <= 1
        assert max(abs(a - b) for a, b in pairwise(y)) <= 1
    seen = sights(trace)
    assert all(trace.names[a][:4] == trace.names[b][:4] for (a, _), others in seen.items() for b in others)


def test_a_trace_survives_its_file(busy, tmp_path):
    save_trace(busy, tmp_path / "day.jsonl")
    again = load_trace(tmp_path / "day.jsonl")
    assert (again.x, again.y, again.calls, again.names) == (busy.x, busy.y, busy.calls, busy.names)
    assert again.about["seed"] == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"agent": "a", "step": 0}', "line 2 is neither a move nor a call"),
        ("nonsense", "line 2 is neither"),
        ('{"agent": "a", "step": 3, "pos": [0, 0]}', "no position at step 0"),
        ('{"agent":"a","step":1,"seq":0,"fn":"x","prompt_tokens":1,"output_tokens":1}', "has no agent"),
    ],
)
def test_a_broken_file_names_its_line(line, words, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"about": {"steps": 5, "perceive": 4, "move": 1}}\n' + line + "\n")
    with pytest.raises(ValueError, match=words):
        load_trace(path)


def test_a_file_without_its_first_line_is_refused(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"agent": "a", "step": 0, "pos": [0, 0]}\n')
    with pytest.raises(ValueError, match="no `about` line with steps, perceive and move"):
        load_trace(path)


def test_the_instrumented_forks_export_is_read():
    def event(step, fn, start, end, prompt, output):
        record = {"persona_name": "Ida Lin", "step": str(step), "function_name": fn, "input": prompt}
        return f"Ida Lin:{step}:{fn}:{start}", record | {
            "output": output,
            "start_time": str(start),
            "end_time": str(end),
        }

    llm = dict(
        [
            event(0, "poignancy", 5.0, 6.0, "x" * 400, "y" * 8),
            event(0, "wake_up", 1.0, 2.0, "x" * 80, "8"),
            event(1, "stubbed", 9.0, 9.0, "x", "y"),
        ]
    )
    places = {
        "location:Ida Lin:0": {"location": "[3, 4]"},
        "location:Ida Lin:1": {"location": json.dumps([4, 4])},
    }
    trace = import_events(llm, places, reach=Reach(4, 1))
    assert trace.steps == 2
    assert trace.calls == [{0: (RecordedCall("wake_up", 20, 1), RecordedCall("poignancy", 100, 2))}]
    assert list(zip(trace.x[0], trace.y[0])) == [(3, 4), (3, 4), (4, 4)]


def test_how_long_an_agent_stays_is_read_off_its_moves():
    trace = build_trace(5, Reach(4, 1), [("a", 0, (0, 0)), ("a", 3, (1, 0)), ("a", 4, (2, 0))], [])
    assert stays_until(trace, 0) == [2, 2, 3, 5, 5]


# ---- bounds -------------------------------------------------------------------------------------------
def small():
    """a and b meet at step 1; c lives alone."""
    moves = [("a", 0, (0, 0)), ("b", 0, (6, 0)), ("b", 1, (4, 0)), ("b", 2, (9, 0)), ("c", 0, (50, 0))]
    calls = [
        ("a", 0, 0, RecordedCall("x", 9, 1)),
        ("b", 1, 0, RecordedCall("x", 15, 5)),
        ("a", 2, 0, RecordedCall("x", 2, 1)),
    ]
    return build_trace(3, Reach(4, 5), moves, [*calls, ("c", 0, 0, RecordedCall("x", 20, 1))])


def test_the_critical_path_waits_before_and_after_a_meeting():
    trace = small()
    seen = sights(trace)
    assert seen == {(0, 1): [1], (1, 1): [0]}
    assert critical_path(trace, seen, token_cost) == 10 + 20 + 3


def test_no_schedule_beats_the_bounds_and_foresight_beats_the_rule(busy):
    limits = trace_bounds(busy, SERVER)
    took = {
        m: simulate_trace(busy, m, SERVER, seen=limits.seen).elapsed_s
        for m in ("parallel_sync", "metropolis", "oracle")
    }
    slack = 1.02  # list scheduling has anomalies
    assert limits.lower_s <= took["oracle"] * slack
    assert took["oracle"] <= took["metropolis"] * slack
    assert took["metropolis"] <= took["parallel_sync"] * slack
    assert took["metropolis"] * 1.5 < took["parallel_sync"]


def test_one_thread_takes_the_sum_of_unloaded_latencies():
    trace = generate_trace(SyntheticTraceConfig(agents=5, hour=12))
    cost = unloaded_latency(SERVER)
    total = sum(cost(chain) for mine in trace.calls for chain in mine.values())
    assert simulate_trace(trace, "single_thread", SERVER).elapsed_s == pytest.approx(total)


def test_every_mode_makes_every_call_of_the_trace(busy):
    for mode in ("parallel_sync", "metropolis", "no_dependency"):
        stats = simulate_trace(busy, mode, SERVER)
        assert (stats.calls, stats.agent_steps) == (busy.call_count, 25 * 360)
        assert (stats.prompt_tok, stats.output_tok) == busy.tokens()


def test_old_versions_and_promises_never_slow_metropolis_down(busy):
    paper = simulate_trace(busy, "metropolis", SERVER).elapsed_s
    for variant in (
        MetropolisVariant(rule="multi_version"),
        MetropolisVariant(still=True),
        MetropolisVariant(perceive=2),
    ):
        assert simulate_trace(busy, "metropolis", SERVER, variant=variant).elapsed_s <= paper * 1.02
    assert (
        simulate_trace(busy, "metropolis", SERVER, variant=MetropolisVariant(perceive=8)).elapsed_s
        >= paper * 0.98
    )


def test_a_variant_cannot_deny_the_moves_of_its_trace(busy):
    with pytest.raises(ValueError, match="below the trace's own"):
        simulate_trace(busy, "metropolis", SERVER, variant=MetropolisVariant(move=0))
