"""The simulated server against an iteration-by-iteration one, and virtual time against arithmetic."""

import asyncio
import random
from dataclasses import replace

import pytest

from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.runtime.server import ServerConfig, SimulatedServer, step_cost

ONE = ServerConfig(replicas=1)


def plain(config: ServerConfig, calls) -> list[float]:
    """Every iteration in turn; calls are (arrival, prompt, output, priority). Finishing times."""
    waiting = sorted(range(len(calls)), key=lambda i: (calls[i][0], i))
    queue: list[int] = []
    running: dict[int, int] = {}
    done, now = [0.0] * len(calls), 0.0
    while waiting or queue or running:
        if not queue and not running:
            now = max(now, calls[waiting[0]][0])
        while waiting and calls[waiting[0]][0] <= now + 1e-9:
            queue.append(waiting.pop(0))
        queue.sort(key=lambda i: (calls[i][3] if config.priority else 0, calls[i][0], i))
        prefill = 0
        while queue and len(running) < config.max_running:
            if prefill and prefill + calls[queue[0]][1] > config.prefill_tok:
                break
            i = queue.pop(0)
            prefill += calls[i][1]
            running[i] = calls[i][2]
        now += config.cost.step_s + config.cost.row_s * len(running) + config.cost.prefill_s * prefill
        for i in list(running):
            running[i] -= 1
            if not running[i]:
                done[i] = now
                del running[i]
    return done


def simulated(config: ServerConfig, calls) -> list[float]:
    async def main():
        server, loop = SimulatedServer(config), asyncio.get_running_loop()
        done = [0.0] * len(calls)

        async def one(i, at, prompt, output, priority):
            await asyncio.sleep(at)
            await server.complete(range(prompt), max_tokens=output, priority=priority)
            done[i] = loop.time()

        await asyncio.gather(*(one(i, *call) for i, call in enumerate(calls)))
        return done

    return run_virtual(main())


@pytest.mark.parametrize("seed", range(12))
def test_jumping_over_iterations_changes_no_finishing_time(seed):
    draw = random.Random(seed)
    config = replace(
        ONE,
        max_running=draw.choice([1, 2, 5, 64]),
        prefill_tok=draw.choice([300, 1000, 4096]),
        priority=draw.random() < 0.5,
    )
    calls = [
        (draw.uniform(0, 8), draw.randint(1, 900), draw.randint(1, 40), draw.randint(0, 3)) for _ in range(40)
    ]
    assert simulated(config, calls) == pytest.approx(plain(config, calls), abs=1e-6)


def test_a_call_on_an_idle_server_takes_its_unloaded_time():
    [done] = simulated(ONE, [(2.0, 600, 20, 0)])
    assert done == pytest.approx(2.0 + ONE.unloaded_s(600, 20))
    assert ONE.unloaded_s(600, 20) == pytest.approx(0.0003 * 600 + 20 * 0.067)


def test_calls_go_to_the_least_busy_replica():
    together = simulated(replace(ONE, replicas=2), [(0, 100, 10, 0)] * 2)
    assert together == pytest.approx([ONE.unloaded_s(100, 10)] * 2)


def test_of_calls_that_wait_the_earlier_step_goes_first():
    config = replace(ONE, max_running=1)
    calls = [(0, 10, 10, 0), (0.1, 10, 10, 9), (0.2, 10, 10, 3)]
    ordered, by_age = simulated(config, calls), simulated(replace(config, priority=False), calls)
    assert ordered[2] < ordered[1]
    assert by_age[1] < by_age[2]


def test_a_cancelled_call_frees_its_slot():
    async def main():
        server, loop = SimulatedServer(replace(ONE, max_running=1)), asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await server.complete(range(10), max_tokens=10_000)
        await server.complete(range(10), max_tokens=1)
        return loop.time()

    assert run_virtual(main()) < 1.0 + 10_000 * 0.067  # the slot is free at the end of the planned stretch


def test_a_server_that_takes_no_time_is_refused():
    with pytest.raises(ValueError, match="no time"):
        SimulatedServer(ServerConfig(cost=step_cost(0, 0, 0.1)))
    with pytest.raises(ValueError, match=r"server\.replicas is 0"):
        SimulatedServer(ServerConfig(replicas=0))


def test_virtual_sleep_costs_nothing_and_keeps_order():
    async def main():
        seen = []

        async def note(after, word):
            await asyncio.sleep(after)
            seen.append(word)

        await asyncio.gather(note(3600, "late"), note(1, "early"), note(3600, "later"))
        return seen, asyncio.get_running_loop().time()

    assert run_virtual(main()) == (["early", "late", "later"], 3600)
