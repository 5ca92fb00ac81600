"""Event logs and snapshots written by an earlier version (commit 23cc231) still load, to the same figures.

`fixtures/events.jsonl` is a simulated run with hits, a cancel and a preemption during a prefill, and
`report.json` the figures that version computed from it. `snapshots.json` is, for each policy, the state after
90 random events, and the order and service that followed.
"""

import json
from pathlib import Path

import pytest

from serving.fair import metrics
from tests.serving.fair.test_bounds import LOCAL
from tests.serving.fair.test_properties import build

FIXTURES = Path(__file__).parent / "fixtures"
SNAPSHOTS = json.loads((FIXTURES / "snapshots.json").read_text())


@pytest.mark.parametrize(("figures", "cached"), [("hits_billed", 1.0), ("hits_free", 0.0)])
def test_an_old_event_log_reads_to_the_same_figures(figures, cached):
    events = list(metrics.read(FIXTURES / "events.jsonl"))
    assert {event["event"] for event in events} == set(metrics.EVENTS) - {"weight"}  # which came later
    assert any("prefilled" in event for event in events)
    found = metrics.report(events, cached=cached)
    totals = {name: getattr(found, name) for name in ("prompt_tok", "hit_tok", "output_tok")}
    figures_now = found.table() | {"curve": found.curve, "gap_curve": found.gap_curve} | totals
    expected = json.loads((FIXTURES / "report.json").read_text())[figures]
    expected.pop("jain")  # it was of totals, which are what was asked for whatever the policy
    figures_now = json.loads(json.dumps(figures_now))
    assert {name: figures_now[name] for name in expected} == expected


@pytest.mark.parametrize("name", LOCAL)
def test_an_old_snapshot_restores_to_the_same_decisions(name):
    policy, old = build(name), SNAPSHOTS[name]
    policy.restore(old["snapshot"])
    assert json.loads(json.dumps(policy.snapshot())) == old["snapshot"]
    for id in [id for id in policy.charge_of if id not in policy.backlog]:
        policy.finish(id)
    order = []
    while (request := policy.pick(1000.0)) is not None:
        policy.admit(request, extend_tok=request.prompt_tok, hit_tok=0)
        policy.decoded({request.id: 2})
        policy.finish(request.id)
        order.append(request.id)
    assert order == old["order"]
    assert policy.served() == old["served"]
