"""Nightly: a million events per policy, with every invariant checked after each event (`make test-long`)."""

import pytest

from serving.fair.ledger import SCALE
from tests.serving.fair.scenario import Scenario, run_scenario
from tests.serving.fair.test_bounds import LOCAL, OPTIONS

EVENTS = 1_000_000


class Watch:
    """Counts events and violations of the policy's invariants."""

    def __init__(self, policy: str, half_bound: float | None, debt_tok: float):
        self.policy, self.half_bound, self.debt_tok = policy, half_bound, debt_tok
        self.events, self.violations = 0, 0
        self.widest = 0.0

    def __call__(self, policy, event):
        self.events += 1
        if event["event"] == "arrive":
            return  # logged before the policy is called
        accounts = policy.ledger.accounts
        for account in accounts.values():
            self.violations += account.raw != account.lifts + account.charges - account.refunds
        if self.policy in ("vtc", "wvtc") and (waiting := policy.backlog.waiting_of):
            counters = [accounts[client].counter for client in waiting]
            spread = (max(counters) - min(counters)) / SCALE
            self.widest = max(self.widest, spread)
            self.violations += spread > self.half_bound
        if self.policy == "dlpm":
            for client in accounts:
                credit = policy.credit(client)
                self.widest = max(self.widest, -credit / SCALE)
                self.violations += not -self.debt_tok * SCALE < credit <= policy.quantum


@pytest.mark.long
@pytest.mark.parametrize("policy", LOCAL)
def test_a_million_events_without_a_violation(policy, capsys):
    prefixes = 3 if policy in ("lpm", "dfs_weight", "hrrn", "dlpm") else 0
    options = OPTIONS.get(policy, {}) | ({"limit": 1000} if policy == "rpm" else {})
    events = done = 0
    gap, seed, widest, violations = 0.0, 0, 0.0, 0
    while events < EVENTS:
        scenario = Scenario(
            seed=seed,
            clients=2 + seed % 5,
            requests=20_000,
            shape=("waves", "spread")[seed % 2],
            lengths=("heavy", "flat")[seed // 2 % 2],
            longest=40,
            memory_tok=(200, 400)[seed // 4 % 2],
            every=(1, 10)[seed // 3 % 2],
            cancels=(0.0, 0.2)[seed // 5 % 2],
            slack=(0, 5)[seed // 7 % 2],
            prefixes=prefixes,
            policy=policy,
            options=options,
        )
        jobs = scenario.jobs()
        memory_tok, longest = scenario.memory_tok + 4, max(job.prompt_tok for job in jobs)
        half = memory_tok * 2.0
        watch = Watch(policy, half, half + longest)
        run = run_scenario(scenario, watch, jobs, keep=False)
        found = run.meter.report()
        bound = run.policy.gap_bound(memory_tok=memory_tok, max_prompt_tok=longest)
        violations += watch.violations
        if bound is not None and policy != "wvtc":  # whose bound is on service divided by weight
            violations += found.gap > bound
        violations += found.finished + found.cancelled != len(jobs)
        billed = {client: amount / SCALE for client, amount in run.policy.served().items()}
        violations += any(found.service[client] != amount for client, amount in billed.items())
        events, done = events + watch.events, done + found.finished
        gap, widest = max(gap, found.gap), max(widest, watch.widest)
        seed += 1
    with capsys.disabled():
        print(
            f"\n{policy:12} {events:9,} events, {done:8,} requests finished, {violations} violations; "
            f"largest gap {gap:,.0f}, widest spread or debt {widest:,.0f}"
        )
    assert violations == 0
