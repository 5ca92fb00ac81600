"""The scheduler without a device: random workloads, a fake model, every invariant after every step."""

import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.config import Limits
from serving.engine.plan import RequestState, StepResult
from serving.engine.scheduler import Scheduler
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.tokens import TokenIds
from serving.request import RequestInfo
from tests.serving.kv_groups import group


class OldestFirst:
    """The plainest policy: arrival order, preempted requests ahead."""

    def __init__(self):
        self.waiting, self.live = OrderedDict(), {}

    def arrive(self, info, now_s):
        self.waiting[info.id] = self.live[info.id] = info
        return True

    def pick(self, now_s):
        return next(iter(self.waiting.values()), None)

    def admit(self, info, *, extend_tok, hit_tok):
        del self.waiting[info.id]

    def decoded(self, tokens_of):
        pass

    def finish(self, id):
        del self.live[id]

    def cancel(self, id, *, prefilled_tok=None):
        self.waiting.pop(id, None)
        del self.live[id]

    def preempt(self, id, *, prefilled_tok=None):
        self.waiting[id] = self.live[id]
        self.waiting.move_to_end(id, last=False)


def scheduler(*, admission="reserve", num_pages=40, windows=(None, 6), log=None, **limits) -> Scheduler:
    limits = Limits(chunk_tok=8, step_tok=12, admission=admission, **limits)
    span = max(limits.chunk_tok, *limits.decode_steps)
    groups = [group(w, num_pages) for w in windows]
    mem = KVCacheManager(groups, page_tok=4, max_slots=4, max_tok=64, span_tok=span)
    return Scheduler(OldestFirst(), mem, limits, log or (lambda event: None))


def req(i, prompt, outputs, client="a", t=0.0) -> RequestState:
    return RequestState(RequestInfo(f"r{i}", client, i, len(prompt), outputs), TokenIds(prompt), "", t)


def run_step(sched: Scheduler, now: float, rng: random.Random):
    """Executes a plan as a model would: one id a sampled token, rows end when their allowance does."""
    plan = sched.plan(now)
    if plan is None:
        return None
    for row in plan.decode:
        assert not row.prefilling
        assert row.computed_tok == row.total_tok - 1
    counts = {c.req.info.id: 1 for c in plan.chunks if c.samples}
    counts |= {e.info.id: min(plan.steps, e.left_tok) for e in plan.decode}
    produced = {id: StepResult(n, [rng.randint(0, 1) for _ in range(n)]) for id, n in counts.items()}
    return sched.commit(plan, produced, now)


@given(
    seed=st.integers(0, 10**6),
    admission=st.sampled_from(["reserve", "optimistic"]),
    num_pages=st.sampled_from([16, 30]),
    windows=st.sampled_from([(None,), (None, 6), (5,)]),
)
def test_every_request_ends_exactly_once_with_all_its_tokens_and_nothing_leaks(
    seed, admission, num_pages, windows
):
    rng = random.Random(seed)
    log = []
    sched = scheduler(admission=admission, num_pages=num_pages, windows=windows, log=log.append)
    wanted, ended, now = {}, {}, 0.0
    for i in range(25):
        prompt = [rng.randint(0, 1) for _ in range(rng.randint(1, 24))]
        wanted[f"r{i}"] = rng.randint(1, 16)
        sched.submit(req(i, prompt, wanted[f"r{i}"], client=rng.choice("ab")), now)
    steps = 0
    while not sched.idle:
        steps += 1
        assert steps < 3000, "no progress"
        now += 1.0
        if rng.random() < 0.03 and (victim := rng.choice([*sched.running, *sched.waiting])):
            ended[victim] = sched.cancel(victim, now)
        for out in run_step(sched, now, rng) or []:
            assert out.id not in ended
            assert len(out.output_ids) == wanted[out.id]
            ended[out.id] = out
        sched.memory.check()
        if admission == "reserve":
            assert all(sched.memory.room(g) >= 0 for g in range(len(windows))), "promised more than there is"
    assert ended.keys() == wanted.keys()
    assert sched.memory.slots_free == 4
    for g, pool in enumerate(sched.memory.pools):
        assert len(pool) + sched.memory.tree.pages[g].held == pool.num_pages - 1, (
            "idle: free or cached, nothing else"
        )
    produced = sum(sum(e["counts"].values()) for e in log if e["event"] == "tokens")
    assert produced == sum(len(o.output_ids) for o in ended.values()), "the log recounts every token"
    if admission == "reserve":
        assert not any(e["event"] == "preempt" for e in log), "a reservation is never broken"


def test_optimistic_admission_preempts_when_memory_runs_out_and_still_finishes():
    log = []
    sched = scheduler(admission="optimistic", num_pages=12, windows=(None,), log=log.append)
    for i in range(4):
        sched.submit(req(i, [i] * 8, 20), 0.0)
    rng = random.Random(0)
    for t in range(500):
        run_step(sched, float(t), rng)
    assert sched.idle
    assert any(e["event"] == "preempt" for e in log)


def test_a_request_that_cannot_run_even_alone_is_refused_at_arrival():
    sched = scheduler(num_pages=6, windows=(None,))
    with pytest.raises(ValueError, match=r"'r0'.*needs 7 pages.*there are 5"):
        sched.submit(req(0, [1] * 20, 6), 0.0)
    assert sched.idle


def test_a_live_id_cannot_be_used_twice():
    sched = scheduler()
    sched.submit(req(0, [1], 1), 0.0)
    with pytest.raises(ValueError, match="live already"):
        sched.submit(req(0, [1], 1), 0.0)


def test_several_decode_steps_are_taken_only_when_nobody_is_kept_waiting():
    sched = scheduler()
    sched.submit(req(0, [1, 2, 3], 16), 0.0)
    rng = random.Random(0)
    run_step(sched, 0.0, rng)
    assert sched.plan(1.0).steps == 8
    sched.submit(req(1, [5], 4), 1.0)
    assert sched.plan(1.0).steps == 1, "a newcomer prefills, so rows look up after one step"


def test_a_shared_beginning_is_computed_once():
    log = []
    sched = scheduler(log=log.append)
    rng = random.Random(0)
    sched.submit(req(0, list(range(20)), 2), 0.0)
    while not sched.idle:
        run_step(sched, 0.0, rng)
    sched.submit(req(1, [*range(16), 77, 78], 2), 1.0)
    while not sched.idle:
        run_step(sched, 1.0, rng)
    admits = [(e["extend"], e["hit"]) for e in log if e["event"] == "admit"]
    assert admits == [(20, 0), (2, 16)]


def test_row_5_a_request_cancelled_while_its_step_runs_gets_nothing_of_it():
    log = []
    sched = scheduler(log=log.append)
    for i in range(2):
        sched.submit(req(i, [1, 2, 3], 4), 0.0)
    plan = sched.plan(0.0)
    assert sched.cancel("r0", 0.0).output_ids == []
    ended = sched.commit(plan, {id: StepResult(1, [5], "stop") for id in ("r0", "r1")}, 1.0)
    assert [output.id for output in ended] == ["r1"]
    assert [e["event"] for e in log if e.get("id") == "r0"] == ["arrive", "admit", "cancel"]
    assert sched.idle


def test_row_11_no_chunk_is_empty_however_many_prompts_share_a_step():
    sched = scheduler()  # 12 tokens a step, 8 of one request
    for i in range(4):
        sched.submit(req(i, list(range(10 * i, 10 * i + 20)), 2), 0.0)
    rng, lengths = random.Random(0), []
    for t in range(40):
        plan = sched.plan(float(t))
        if plan is None:
            break
        lengths.append([c.end - c.start for c in plan.chunks])
        counts = {c.req.info.id: 1 for c in plan.chunks if c.samples} | {e.info.id: 1 for e in plan.decode}
        sched.commit(plan, {id: StepResult(1, [rng.randint(0, 1)]) for id in counts}, float(t))
    assert sched.idle
    assert [8, 4] in lengths, "the budget did run out with prompts left"
    assert all(1 <= n <= 8 for step in lengths for n in step)
    assert all(sum(step) <= 12 for step in lengths)


def test_row_7_what_a_broken_row_computed_is_not_kept_for_others():
    """Its logits were not finite, so its keys and values may not be: whoever found them would fail too."""
    sched = scheduler()
    rng = random.Random(0)
    sched.submit(req(0, [1] * 8, 4), 0.0)
    plan = sched.plan(0.0)
    [output] = sched.commit(plan, {"r0": StepResult(0, [], "error")}, 1.0)
    assert output.finish_reason == "error"
    assert sched.memory.match(TokenIds([1] * 9), "") == 0
    sched.submit(req(1, [1] * 8, 4), 2.0)
    for _ in range(2):
        run_step(sched, 2.0, rng)
    [broken] = sched.running
    plan = sched.plan(3.0)
    sched.commit(plan, {broken: StepResult(0, [], "error")}, 3.0)
    assert sched.memory.match(TokenIds([1] * 9), "") == 8, "its prompt was in order"
