import asyncio
import time

import pytest

from mixattn.evals.arena.platform.durable import DurableWrites


def test_callers_share_flushes_and_none_returns_before_one_that_began_after_its_call():
    written, on_disk, flushes = [0], [0], [0]

    def flush():
        seen = written[0]
        time.sleep(0.01)
        on_disk[0] = seen
        flushes[0] += 1

    async def one(durable, n):
        await asyncio.sleep(0.001 * (n % 7))
        written[0] += 1
        mine = written[0]
        await durable.wait()
        assert on_disk[0] >= mine

    async def main():
        durable = DurableWrites(flush)
        await asyncio.gather(*(one(durable, n) for n in range(100)))

    asyncio.run(main())
    assert flushes[0] <= 6


def test_a_disk_that_refuses_is_an_error_for_who_waits_and_the_next_tries_again():
    calls = []

    def flush():
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no space")

    async def main():
        durable = DurableWrites(flush)
        with pytest.raises(OSError, match="no space"):
            await durable.wait()
        await durable.wait()

    asyncio.run(main())
    assert len(calls) == 2
