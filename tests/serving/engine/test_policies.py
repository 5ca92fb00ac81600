"""Every policy of `serving.fair` plugs into the engine as it is: tight pools, priorities, cancels."""

import dataclasses
import random
from typing import Any

import pytest

from serving.config import Limits
from serving.request import Request
from tests.serving.tiny import check_against_teacher, engine, finish, model, workload

POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {}, "rr": {}, "rpm": {"limit": 5}, "lcf": {}, "drr": {"quantum_tok": 64}, "lpm": {},
    "dfs_weight": {}, "hrrn": {}, "vtc": {}, "vtc_predict": {"predictor": "oracle"},
    "wvtc": {"weights": {"a": 2}}, "hvtc": {}, "dlpm": {"quantum_tok": 64},
}  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_everybody_once_and_none_of_them_fails(policy):
    limits = Limits(chunk_tok=8, step_tok=16, admission="optimistic")
    eng = engine(
        model("0_1s"), num_pages=24, window_pages=28, limits=limits, overlap=True, debug=True,
        policy=policy, policy_options=POLICIES[policy],
    )  # fmt: skip
    rng = random.Random(1)
    asked: dict[str, Request] = {}
    for i, request in enumerate(workload(seed=2, n=16)):
        asked[eng.submit(dataclasses.replace(request, priority=i % 3))] = request
    deltas = eng.step() + eng.step()
    for victim in rng.sample(sorted(eng.streams), 2):
        assert eng.cancel(victim)
    outputs = [d.output for d in deltas + finish(eng) if d.output]
    assert sorted(o.id for o in outputs) == sorted(asked)
    whole = [o for o in outputs if o.finish_reason == "length"]
    check_against_teacher([asked[o.id] for o in whole], whole, model("0_1s"))
    assert len(whole) >= (14 if policy != "rpm" else 10), "rpm refuses who asks too often"
    assert eng.stats().policy_failure is None
