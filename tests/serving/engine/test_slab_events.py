"""Random event logs over scheduler, tree, rows of votes and slabs, against dictionaries in place of a device.

The content of a place is what it would be computed from: the tokens up to it, or for what a settled row
decodes its request, whose keys differ from those of any prompt. Every read is compared with what it must be.
"""

import random
from dataclasses import dataclass, field

import pytest

from serving import fair
from serving.config import Limits
from serving.engine.plan import RequestState, StepResult
from serving.engine.scheduler import Scheduler
from serving.kvcache.groups import FullGroup, SlidingGroup
from serving.kvcache.manager import KVCacheManager
from serving.kvcache.slab_plan import SlabPlan
from serving.kvcache.tokens import TokenIds
from serving.request import RequestInfo

PAGE, WINDOW, SLOTS = 4, 6, 4
PLANS = (
    None,
    SlabPlan(0, ((2, 2, 0),), history=True),
    SlabPlan(0, ((2, 2, 0),), history=True),
    SlabPlan(1, ((2, 2, 0),), last_queries=3, grows=True),
    SlabPlan(2, ((2, 2, 0),)),
)


@dataclass
class DictDevice:
    """Contents by group, physical page and offset; rows of votes; slabs by slot."""

    places: list[dict[tuple[int, int], object]] = field(default_factory=lambda: [{}, {}])
    votes: dict[int, tuple] = field(default_factory=lambda: {0: ()})
    slabs: dict[int, tuple[str, int]] = field(default_factory=dict)

    def run(self, plan, memory, outputs):
        for settle in plan.settles:
            self._settle(settle)
        for chunk in plan.chunks:
            self._chunk(chunk, memory)
        return {req.info.id: self._decode(req, plan.steps, memory, outputs) for req in plan.decode}

    def _settle(self, settle):
        req, pages = settle.req, settle.pages
        ids = tuple(req.tokens.ids.tolist())
        for p in range(len(ids)):
            page = int(pages.table[p // PAGE])
            assert self.places[0][page, p % PAGE] == ids[: p + 1], "a prompt's page was overwritten"
        if req.slab.history:
            assert self.votes[pages.votes_row] == ids, "scores of another prefix"
        moved = {
            (to, offset): self.places[1].get((source, offset))
            for source, to in pages.moves[1]
            for offset in range(PAGE)
        }
        self.places[1] |= moved
        self.slabs[pages.slot] = req.info.id, len(ids)

    def _chunk(self, chunk, memory):
        req, kv = chunk.req, chunk.req.kv
        ids = tuple(req.all_tokens.ids.tolist())
        self._check(req, memory, 0, range(chunk.start), ids)
        self._check(req, memory, 1, range(max(0, chunk.start - WINDOW + 1), chunk.start), ids)
        for g in range(2):
            for p in range(chunk.start, chunk.end):
                page = int(memory.tables[g][kv.slot, p // PAGE])
                assert page, "a chunk without a page"
                self.places[g][page, p % PAGE] = ids[: p + 1]
        if req.slab is not None and req.slab.history:
            begins = chunk.start == kv.votes.hit_tok
            found = self.votes[kv.votes.base if begins else kv.votes.row]
            assert found == ids[: chunk.start], "scores of another prefix"
            self.votes[kv.votes.row] = ids[: chunk.end]
            if kv.votes.mark_row and chunk.end in kv.votes.marks:
                self.votes[kv.votes.mark_row] = ids[: chunk.end]

    def _check(self, req, memory, group, positions, ids):
        for p in positions:
            page = int(memory.tables[group][req.kv.slot, p // PAGE])
            own = req.slab is not None and p >= req.info.prompt_tok
            want = (req.info.id, p) if own else ids[: p + 1]
            assert self.places[group][page, p % PAGE] == want, f"position {p} is another's"

    def _decode(self, req, steps, memory, outputs):
        ids = (*req.tokens.ids.tolist(), *outputs[req.info.id])
        taken = min(steps, req.steps_left)
        for p in range(req.computed_tok, req.computed_tok + taken):
            self._check(req, memory, 1, range(max(0, p - WINDOW + 1), p), ids)
            page = int(memory.tables[1][req.kv.slot, p // PAGE])
            self.places[1][page, p % PAGE] = (req.info.id, p) if req.slab is not None else ids[: p + 1]
            if req.slab is None:
                self._check(req, memory, 0, range(p), ids)
                self.places[0][int(memory.tables[0][req.kv.slot, p // PAGE]), p % PAGE] = ids[: p + 1]
            else:
                assert self.slabs[req.slot] == (req.info.id, p), "another's slab, or a step was lost"
                self.slabs[req.slot] = req.info.id, p + 1
        replayed = min(taken, req.replay_tok)
        new = outputs[req.info.id][req.output_tok : req.output_tok + taken - replayed]
        return StepResult(len(new), new, replayed=replayed)


class Log:
    """One random run."""

    def __init__(self, seed: int, *, policy="fcfs", admission="reserve", pages=40, windows=28):
        self.rng, self.outputs, self.sent, self.now_s = random.Random(seed), {}, 0, 0.0
        self.memory = KVCacheManager(
            [FullGroup(pages), SlidingGroup(WINDOW, windows)],
            page_tok=PAGE,
            max_slots=SLOTS,
            max_tok=48,
            span_tok=8,
            step_tok=16,
            working_votes=2,
            snapshots=3,
        )
        limits = Limits(chunk_tok=8, step_tok=16, decode_steps=(4, 1), admission=admission)
        make = (lambda match: fair.make(policy, match=match)) if policy == "lpm" else fair.make(policy)
        self.scheduler = Scheduler(make, self.memory, limits)
        self.device, self.ended, self.hits = DictDevice(), 0, 0

    def submit(self):
        stem = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13][: self.rng.choice((0, 5, 8, 13))]
        own = [self.rng.randrange(20, 24) for _ in range(self.rng.randint(1, 14))]
        id, new = f"r{self.sent}", self.rng.randint(1, 12)
        info = RequestInfo(id, "abc"[self.sent % 3], self.sent, len(stem + own), new)
        self.outputs[id] = [self.rng.randrange(30, 60) for _ in range(new)]
        req = RequestState(info, TokenIds(stem + own), "", self.now_s, slab=self.rng.choice(PLANS))
        self.scheduler.submit(req, self.now_s)
        self.sent += 1

    def step(self):
        self.now_s += 1
        plan = self.scheduler.plan(self.now_s)
        if plan is None:
            return
        produced = self.device.run(plan, self.memory, self.outputs)
        for chunk in plan.chunks:
            if chunk.samples:
                produced[chunk.req.info.id] = StepResult(1, self.outputs[chunk.req.info.id][:1])
        for output in self.scheduler.commit(plan, produced, self.now_s):
            assert output.output_ids == self.outputs[output.id], "an output is lost or made twice"
            self.ended += 1
            self.hits += output.hit_tok
        self.memory.check()

    def event(self):
        chance = self.rng.random()
        live = [*self.scheduler.running, *self.scheduler.waiting]
        if chance < 0.06 and live:
            self.scheduler.cancel(self.rng.choice(live), self.now_s)
            self.ended += 1
        elif chance < 0.14 and self.scheduler.running:
            self.scheduler.preempt(self.rng.choice(list(self.scheduler.running)), self.now_s)
        elif chance < 0.145:
            self.scheduler.drop_all_pages(self.now_s)
            self.device = DictDevice()
        self.memory.check()

    def run(self, requests: int):
        steps = 0
        while self.sent < requests or not self.scheduler.idle:
            if self.sent < requests and len(self.scheduler.waiting) < 6:
                self.submit()
            if self.sent < requests:
                self.event()
            self.step()
            steps += 1
            assert steps < 60 * requests, "nothing moves any more"
        assert self.ended == requests
        assert self.memory.slots_free == SLOTS
        assert self.memory.votes.free == 2


@pytest.mark.parametrize("admission", ["reserve", "optimistic"])
@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.long) for s in range(2, 40))])
def test_random_logs(seed, policy, admission):
    log = Log(seed, policy=policy, admission=admission)
    log.run(120)
    assert log.hits > 0


def test_the_least_memory_still_serves_all():
    log = Log(7, pages=13, windows=12)
    log.run(60)


@pytest.mark.parametrize(
    "defect", ["pages of a settled row are shared", "scores of a longer prefix", "window pages are not moved"]
)
def test_a_defect_is_noticed(defect, monkeypatch):
    if defect.startswith("pages"):
        computed = KVCacheManager.computed

        def shares(self, kv, tokens, computed_tok, *, share):
            settled, kv.settled = kv.settled, False
            computed(self, kv, tokens, computed_tok, share=share)
            kv.settled = settled

        monkeypatch.setattr(KVCacheManager, "computed", shares)
    elif defect.startswith("scores"):
        from serving.kvcache.radix_tree import RadixTree

        valid = RadixTree._valid_end

        def any_end(self, path, limit_tok, scored=False):
            return valid(self, path, limit_tok)

        monkeypatch.setattr(RadixTree, "_valid_end", any_end)
    else:
        monkeypatch.setattr(DictDevice, "_settle", _without_moves(DictDevice._settle))

    def logs():
        for seed in range(6):
            Log(seed).run(120)

    with pytest.raises((AssertionError, KeyError, IndexError, ValueError)):
        logs()


def _without_moves(settle):
    def run(self, settled):
        before = dict(self.places[1])
        settle(self, settled)
        self.places[1] = before

    return run
