"""Nightly: weighted bounds on a million events per policy that shares by weight (`make test-long`).

Every event of a run is checked for what is owed (credit, counters), every run for the gap in service per
weight. Every other run also changes weights while it runs; there only what holds across a change is checked.
"""

import pytest

from serving.fair.ledger import SCALE
from serving.fair.metrics import ServiceMeter
from tests.serving.fair.scenario import Scenario, run_scenario
from tests.serving.fair.test_weights import BOUNDED

EVENTS = 1_000_000
WEIGHTS = ({"c0": 8, "c1": 4, "c2": 1}, {"c0": 0.5, "c1": 3}, {"c0": 1, "c1": 1, "c2": 1})


class WeightedWatch:
    """Counts events and violations; changes a weight every `every` events if that is not 0."""

    def __init__(self, name, meter, bound, every):
        self.name, self.meter, self.bound, self.every = name, meter, bound, every
        self.events = self.violations = 0
        self.widest = 0.0

    def __call__(self, policy, event):
        self.events += 1
        self.meter.take(event)
        if event["event"] == "arrive":
            return  # logged before the policy is called
        accounts = policy.ledger.accounts
        for account in accounts.values():
            self.violations += account.raw != account.lifts + account.charges - account.refunds
        if self.name.startswith(("vtc", "wvtc")) and (waiting := policy.backlog.waiting_of):
            counters = [accounts[client].counter for client in waiting]
            spread = float(max(counters) - min(counters)) / SCALE
            self.widest = max(self.widest, spread)
            self.violations += not self.every and spread > self.bound / 2
        if self.name in ("drr", "dlpm"):
            for client, account in accounts.items():
                self.violations += policy.credit(client) > policy._quantum_of(account)
        if self.every and self.events % self.every == 0:
            client, weight = f"c{self.events // self.every % 3}", 1 + self.events // self.every % 5
            policy.set_weight(client, weight)
            self.meter.take({"t": event["t"], "event": "weight", "client": client, "weight": weight})


@pytest.mark.long
@pytest.mark.parametrize("name", BOUNDED)
def test_a_million_weighted_events_without_a_violation(name, capsys):
    events = done = seed = violations = changed = 0
    share = gap = 0.0
    while events < EVENTS:
        weights = WEIGHTS[seed % 3]
        scenario = Scenario(
            seed=seed,
            clients=2 + seed % 4,
            requests=20_000,
            shape=("waves", "spread", "burst")[seed % 3],
            lengths=("heavy", "flat")[seed // 2 % 2],
            longest=40,
            memory_tok=(200, 400)[seed // 4 % 2],
            every=(1, 10)[seed // 3 % 2],
            prefixes=3 if name == "dlpm" else 0,
            policy=name.removesuffix("_fluid"),
            options=BOUNDED[name] | {"weights": weights},
        )
        jobs = scenario.jobs()
        longest = max(job.prompt_tok for job in jobs)
        smallest = min(1.0, *weights.values())
        half = 2.0 * (scenario.memory_tok + 4) / smallest
        every = (0, 997)[seed % 2]
        cached = 0.0 if scenario.prefixes else 1.0
        meter = ServiceMeter(cached=cached, curves=False, weights={c: float(w) for c, w in weights.items()})
        watch = WeightedWatch(name, meter, 2 * half, every)
        run = run_scenario(scenario, watch, jobs, keep=False)
        found = meter.report()
        bound = run.policy.gap_bound(memory_tok=scenario.memory_tok + 4, max_prompt_tok=longest)
        if not every:
            violations += found.gap > bound
            gap, share = max(gap, found.gap), max(share, found.gap / bound)
        violations += watch.violations + (found.finished != len(jobs))
        billed = {client: amount / SCALE for client, amount in run.policy.served().items()}
        violations += any(found.service[client] != amount for client, amount in billed.items())
        events, done, seed, changed = (
            events + watch.events,
            done + found.finished,
            seed + 1,
            changed + bool(every),
        )
    with capsys.disabled():
        print(
            f"\n{name:12} {events:9,} events, {done:8,} requests finished, {changed} of {seed} runs with "
            f"changing weights, {violations} violations; largest gap per weight {gap:,.0f}, "
            f"{share:.2f} of its bound"
        )
    assert violations == 0
