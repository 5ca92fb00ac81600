"""The cluster as a backend, over workers that are scripted: losses, silence, refusals, drains."""

import asyncio
import random

import pytest

from mixattn.spec import ModelConfig
from serving import fair
from serving.cluster.autoscaler import Autoscaler, ScalingRule
from serving.cluster.backend import WorkerCluster
from serving.cluster.ingress import Ingress
from serving.cluster.workers import WorkerTimes
from serving.config import EngineConfig
from serving.request import Request, Sampling
from tests.serving.cluster.fake_worker import FakeHandle, token

TIMES = WorkerTimes(heartbeat_s=0.3, grace_s=0.4, back_off_s=0.02, max_back_off_s=0.1)
MODEL = ModelConfig(n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8, vocab_size=1000)


class Bench:
    """A cluster of fake workers, and what its clients have heard."""

    def __init__(self, workers=2, max_tries=10**6, scaler=None, router="d2lpm", **handle):
        self.handles, self.heard, self.outputs, self.refused, self.events = {}, {}, {}, {}, []
        self.admitted = []
        ingress = Ingress(fair.make(router), block_tok=4, max_tries=max_tries)

        def make(place):
            self.handles[place] = FakeHandle(place, **handle)
            return self.handles[place]

        self.cluster = WorkerCluster(self.deliver, ingress, make, TIMES, max_live=1.0, scaler=scaler)
        self.cluster.listeners.append(self.events.append)
        self.cluster.open(MODEL, EngineConfig(), decodes=False)
        for _ in range(workers):
            self.cluster.add()

    def deliver(self, report):
        self.admitted += report.admitted
        self.refused.update(dict(report.refused))
        for delta in report.deltas:
            name = delta.id, delta.index
            assert name not in self.outputs
            self.heard.setdefault(name, []).extend(delta.ids)
            if delta.output is not None:
                self.outputs[name] = delta.output

    def ask(self, count, client="a", max_tokens=12, first=0):
        made = [
            Request(
                client=client,
                prompt_ids=[i % 7 + 1] * 9,
                id=f"{client}{i}",
                sampling=Sampling(max_tokens=max_tokens, seed=i),
            )
            for i in range(first, first + count)
        ]
        self.cluster.submit(made)
        return made

    async def until(self, holds, limit_s=20.0):
        async with asyncio.timeout(limit_s):
            while not holds():
                await asyncio.sleep(0.005)

    async def all_up(self):
        await self.until(lambda: len(self.cluster.up) == len(self.cluster.slots))

    async def answered(self, requests):
        await self.until(lambda: all((r.id, 0) in self.outputs for r in requests))
        for request in requests:
            output = self.outputs[request.id, 0]
            right = [token(request.sampling.seed, i) for i in range(request.sampling.max_tokens)]
            assert output.finish_reason == "length"
            assert output.output_ids == self.heard[request.id, 0] == right
            assert output.text == "".join(f"{id}," for id in right)

    async def closed(self):
        """Idle and clean."""
        ingress = self.cluster.ingress
        assert not ingress.live
        assert not ingress.router.dispatched
        assert not any(ingress.router.load_of.values())
        assert not self.cluster._names
        await self.cluster.end()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_requests_are_answered_and_paid_for():
    async def scenario():
        bench = Bench()
        await bench.all_up()
        asked = bench.ask(20) + bench.ask(10, "b")
        await bench.answered(asked)
        assert len(bench.admitted) == 30
        served = await bench.cluster.served()
        assert served == {"a": 20 * (9 + 24), "b": 10 * (9 + 24)}
        kinds = [event["event"] for event in bench.events]
        assert (kinds.count("arrive"), kinds.count("admit"), kinds.count("finish")) == (30, 30, 30)
        assert sum(sum(e["counts"].values()) for e in bench.events if e["event"] == "tokens") == 30 * 12
        await bench.closed()

    run(scenario)


@pytest.mark.parametrize("seen_after_s", [0.0, 0.15])
def test_a_kill_is_one_loss_however_late_the_end_of_the_process_is_seen(seen_after_s):
    async def scenario():
        bench = Bench()
        await bench.all_up()
        asked, slot = bench.ask(20), bench.cluster.slots[0]
        bench.handles[0].kill(seen_after_s)
        await bench.answered(asked)
        await bench.until(lambda: slot.up)
        assert (slot.losses, slot.starts) == (1, 2)
        assert slot.why == ("it was ended by SIGKILL" if seen_after_s else "its stream broke")
        await bench.closed()

    run(scenario)


@pytest.mark.parametrize("seed", range(2))
def test_kills_silence_and_refusals_change_no_answer(seed):
    async def scenario():
        rng, bench = random.Random(seed), Bench(workers=3)
        await bench.all_up()
        asked = bench.ask(60, max_tokens=40) + bench.ask(20, "b", max_tokens=60)
        for _ in range(25):
            await asyncio.sleep(0.05)
            handle = rng.choice(list(bench.handles.values()))
            slot = bench.cluster.slots[handle.place]
            if not slot.up:
                handle.refusing = False
                continue
            kind = rng.choice(["kill", "silent", "back", "break"])
            if kind == "kill":
                handle.kill()
                handle.refusing = rng.random() < 0.3
            elif kind == "break":
                handle.detach()
                handle.on_end("its stream broke")
            else:
                handle.silent = kind == "silent"
        for handle in bench.handles.values():
            handle.silent = handle.refusing = False
        await bench.answered(asked)
        assert bench.cluster.ingress.counts.again > 0
        served = await bench.cluster.served()
        assert served == {"a": 60 * (9 + 80), "b": 20 * (9 + 120)}
        await bench.closed()

    run(scenario)


def test_a_silent_worker_that_comes_back_in_time_keeps_its_process_and_one_that_does_not_is_replaced():
    async def scenario():
        bench = Bench(workers=2)
        await bench.all_up()
        handle = bench.handles[0]
        handle.silent = True
        await bench.until(lambda: not bench.cluster.slots[0].up)
        handle.silent = False
        await bench.all_up()
        assert handle.starts == 1
        handle.silent = True
        await bench.until(lambda: handle.starts == 2, 5)
        handle.silent = False
        await bench.all_up()
        await bench.closed()

    run(scenario)


def test_without_workers_requests_wait_and_it_says_so():
    async def scenario():
        bench = Bench(workers=1)
        assert bench.cluster.failed is None, "it starts"
        await bench.all_up()
        assert bench.cluster.failed is None
        bench.handles[0].refusing = True
        bench.handles[0].kill()
        assert bench.cluster.failed
        assert (bench.cluster.failed_code, bench.cluster.retry_s) == ("no_worker", 5.0)
        asked = bench.ask(3)
        await asyncio.sleep(0.3)
        assert not bench.outputs
        bench.handles[0].refusing = False
        await bench.answered(asked)
        await bench.closed()

    run(scenario)


def test_after_the_last_try_an_output_ends_as_lost():
    async def scenario():
        bench = Bench(workers=1, max_tries=2, speed=50.0)
        await bench.all_up()
        bench.ask(1, max_tokens=60)
        for _ in range(2):
            await bench.until(lambda: bench.cluster.ingress.router.dispatched)
            await asyncio.sleep(0.1)
            bench.handles[0].kill()
            await bench.all_up()
        await bench.until(lambda: bench.outputs)
        assert bench.outputs["a0", 0].finish_reason == "lost"
        await bench.closed()

    run(scenario)


RUBBISH = {
    "no JSON": b"%!\n",
    "no message": b"[7]\n",
    "a token beyond the vocabulary": b'{"d": [[0, 0, [1000], "", 0, null]]}\n',
    "an end that is none": b'{"d": [[0, 0, [1], "", 0, ["ended", null, 0]]]}\n',
    "counters that are none": b'{"beat": {"stuck_s": "long", "failed": null, "stats": null}}\n',
}


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_worker_that_says_what_is_no_message_is_replaced_and_its_requests_go_elsewhere(rubbish):
    async def scenario():
        bench = Bench(workers=2, speed=100.0)
        await bench.all_up()
        asked, slot = bench.ask(8, max_tokens=30), bench.cluster.slots[0]
        await bench.until(lambda: bench.handles[0].running)
        bench.handles[0].on_line(RUBBISH[rubbish])
        assert slot.state == "lost"
        assert "no message" in slot.why
        await bench.answered(asked)
        await bench.until(lambda: slot.up)
        assert (bench.handles[0].starts, slot.losses) == (2, 1)
        await bench.closed()

    run(scenario)


def test_a_worker_whose_greeting_is_none_is_started_again_with_growing_pauses():
    async def scenario():
        bench = Bench(workers=1, slots=0)
        slot = bench.cluster.slots[0]
        await bench.until(lambda: slot.starts == 3)
        assert "slots is 0" in slot.why
        assert not slot.up
        bench.handles[0].slots = 4
        await bench.all_up()
        await bench.closed()

    run(scenario)


def test_a_worker_that_cannot_be_started_is_tried_again():
    async def scenario():
        bench = Bench(workers=1)
        handle, slot = bench.handles[0], bench.cluster.slots[0]
        start = handle.start

        def fail():
            raise OSError("no memory is left")

        handle.start = fail
        await bench.until(lambda: slot.starts == 2)
        assert "no memory is left" in slot.why
        handle.start = start
        await bench.all_up()
        await bench.closed()

    run(scenario)


def test_a_worker_that_tells_more_than_was_asked_for_is_not_believed():
    async def scenario():
        bench = Bench(workers=1, speed=50.0)
        await bench.all_up()
        asked = bench.ask(1, max_tokens=6)
        await bench.until(lambda: bench.heard)
        (attempt,) = bench.handles[0].running
        bench.handles[0].tell({"d": [[attempt, len(bench.heard["a0", 0]), [1] * 7, "", 0, None]]})
        await bench.answered(asked)
        assert bench.cluster.ingress.counts.wrong == 1
        assert bench.cluster.slots[0].losses == 0
        await bench.closed()

    run(scenario)


def test_a_request_that_the_ingress_cannot_take_is_refused_and_nothing_of_its_call_stays():
    async def scenario():
        bench = Bench(workers=1)
        await bench.all_up()
        good, bad = (Request(client="a", prompt_ids=ids, id=f"x{ids[0]}") for ids in ([1], [2**40]))
        bench.cluster.submit([good, bad])
        await bench.until(lambda: set(bench.refused) == {good.id, bad.id})
        await bench.closed()

    run(scenario)


def test_a_request_that_a_worker_refuses_is_refused_and_not_tried_again():
    async def scenario():
        bench = Bench()
        await bench.all_up()
        bench.cluster.submit([Request(client="a", prompt_ids=[666], id="no", sampling=Sampling(seed=1))])
        asked = bench.ask(3)
        await bench.until(lambda: bench.refused)
        assert "impossible" in bench.refused["no"]
        assert bench.cluster.ingress.counts.again == 0
        await bench.answered(asked)
        await bench.closed()

    run(scenario)


def test_a_cancelled_output_stops_at_its_worker_and_frees_it():
    async def scenario():
        bench = Bench(workers=1, speed=100.0)
        await bench.all_up()
        bench.ask(1, max_tokens=500)
        await bench.until(lambda: bench.heard.get(("a0", 0)))
        bench.cluster.cancel(["a0"])
        await bench.until(lambda: bench.outputs and not bench.handles[0].running)
        assert bench.outputs["a0", 0].finish_reason == "cancel"
        await bench.closed()

    run(scenario)


def test_a_drained_worker_ends_what_it_has_and_goes_and_a_lost_one_that_drains_does_not_come_back():
    async def scenario():
        bench = Bench(workers=3, speed=200.0)
        await bench.all_up()
        asked = bench.ask(9, max_tokens=60)
        await bench.until(lambda: len(bench.admitted) == 9)
        bench.cluster.drain(0)
        bench.cluster.drain(1)
        bench.handles[1].kill()
        await bench.answered(asked)
        await bench.until(lambda: set(bench.cluster.slots) == {2})
        assert bench.handles[1].starts == 1
        await bench.closed()

    run(scenario)


def test_outputs_wait_here_while_workers_are_full_and_clients_take_turns():
    async def scenario():
        bench = Bench(workers=1, speed=200.0)
        await bench.all_up()
        asked = bench.ask(40) + bench.ask(4, "b")
        await bench.answered(asked)
        order = [name[0] for name, _, _ in bench.admitted]
        assert bench.cluster.ingress.router.limit_of[0] == 4
        assert max(i for i, client in enumerate(order) if client == "b") < 16
        await bench.closed()

    run(scenario)


def test_the_cluster_grows_while_outputs_wait_and_shrinks_when_idle():
    async def scenario():
        rule = ScalingRule(min_workers=1, max_workers=3, cool_down_s=0.2, wait_s=0.1, idle_s=0.3)
        bench = Bench(workers=1, scaler=Autoscaler(rule), speed=100.0)
        await bench.all_up()
        asked = bench.ask(80)
        await bench.until(lambda: len(bench.cluster.up) == 3)
        await bench.answered(asked)
        await bench.until(lambda: len(bench.cluster.slots) == 1)
        await bench.closed()

    run(scenario)


def test_a_flush_reaches_every_worker_and_only_when_idle():
    async def scenario():
        bench = Bench(workers=2, speed=100.0)
        await bench.all_up()
        asked = bench.ask(4)
        await bench.until(lambda: bench.heard)
        assert not await bench.cluster.flush()
        await bench.answered(asked)
        assert len(bench.cluster.ingress.router.prefix_map) > 0
        assert await bench.cluster.flush()
        assert len(bench.cluster.ingress.router.prefix_map) == 0
        await bench.closed()

    run(scenario)
