"""The engine's process as the arena sees it: a real process that speaks the protocol."""

import asyncio
import sys

import pytest

from mixattn.evals.arena.platform.engine_process import EngineFailed, EngineProcess

TALKER = """
import json, sys
for line in sys.stdin:
    call = json.loads(line)
    if "cancel" in call:
        print(json.dumps({"id": 0, "cancelled": call["cancel"]}), file=sys.stderr)
        continue
    ask = call["messages"][-1]["content"]
    if ask == "die":
        sys.exit(3)
    if ask == "refuse":
        print(json.dumps({"id": call["id"], "error": "too long"}), flush=True)
        continue
    for word in ask.split():
        print(json.dumps({"id": call["id"], "text": word}), flush=True)
    if ask != "hang":
        print(json.dumps({"id": call["id"], "end": "stop"}), flush=True)
"""


def say(text):
    return [{"role": "user", "content": text}]


async def whole(engine, text):
    return [piece async for piece in engine.stream(say(text), max_tokens=5, temperature=0.0)]


def run(steps):
    async def main():
        engine = EngineProcess("nowhere", [sys.executable, "-c", TALKER])
        try:
            await steps(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def test_answers_stream_side_by_side():
    async def steps(engine):
        assert await asyncio.gather(whole(engine, "a b c"), whole(engine, "d e")) == [
            ["a", "b", "c"],
            ["d", "e"],
        ]

    run(steps)


def test_a_refusal_and_a_crash_end_only_their_answers_and_the_process_starts_again():
    async def steps(engine):
        with pytest.raises(EngineFailed, match="too long"):
            await whole(engine, "refuse")
        hanging = asyncio.create_task(whole(engine, "hang"))
        await asyncio.sleep(0.3)
        with pytest.raises(EngineFailed, match="ended with code 3"):
            await whole(engine, "die")
        with pytest.raises(EngineFailed, match="ended with code 3"):
            await hanging
        assert await whole(engine, "again") == ["again"]

    run(steps)


def test_the_process_ends_with_its_input():
    async def steps(engine):
        await whole(engine, "a")
        process = engine._process
        await engine.close()
        assert process.returncode == 0

    run(steps)
