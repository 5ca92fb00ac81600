"""The engine's thread: a stop is never lost, whenever it comes."""

import asyncio
import threading
import time
from types import SimpleNamespace

from serving.http.loop import EngineLoop


class EventThatIsLate(threading.Event):
    """A wake-up during whose `clear` something else happens first."""

    def __init__(self, meanwhile):
        super().__init__()
        self._meanwhile = meanwhile

    def clear(self):
        self._meanwhile()
        super().clear()


def idle_engine():
    return SimpleNamespace(live=[], step=list)


def ended_after_s(loop):
    """Starts the loop on an idle engine, waits for its thread; seconds that took."""
    events = asyncio.new_event_loop()
    began_s = time.monotonic()
    try:
        loop.start(idle_engine(), events)
        loop._thread.join(2)
        return time.monotonic() - began_s
    finally:
        loop.stop()
        events.close()


def test_a_stop_just_before_the_wake_up_is_cleared_is_not_lost():
    loop = EngineLoop(lambda report: None)
    loop._wake = EventThatIsLate(lambda: loop.stop(wait=False))
    assert ended_after_s(loop) < 1


def test_a_stop_at_any_moment_ends_the_thread():
    for delay_s in [0.0, 1e-5, 1e-4, 1e-3] * 25:
        loop = EngineLoop(lambda report: None)
        events = asyncio.new_event_loop()
        loop.start(idle_engine(), events)
        time.sleep(delay_s)
        began_s = time.monotonic()
        loop.stop()
        events.close()
        assert time.monotonic() - began_s < 1
        assert not loop._thread.is_alive()


def test_a_command_just_before_the_wake_up_is_cleared_is_run():
    ran = threading.Event()
    loop = EngineLoop(lambda report: None)
    loop._wake = EventThatIsLate(lambda: loop._tell(lambda engine: ran.set()) if not ran.is_set() else None)
    events = asyncio.new_event_loop()
    loop.start(idle_engine(), events)
    assert ran.wait(1)
    loop.stop()
    events.close()
