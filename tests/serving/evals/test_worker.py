"""The engine behind the JSON-lines protocol, without its process."""

import io
import json
import threading

import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer
from serving import Engine, EngineConfig
from serving.evals.worker import EngineWorker


@pytest.fixture(scope="module")
def engine():
    config = ModelConfig(
        n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=48, vocab_size=128, dtype="float32"
    )
    net = Transformer(config, rngs=nnx.Rngs(0))
    limits = {"max_slots": 2, "max_request_tok": 32, "prefill_rows": (1,), "chunk_sizes": (32,)}
    return Engine(net, EngineConfig(**limits), decode=lambda ids: "".join(chr(32 + i % 90) for i in ids))


class Calls:
    """Lines of a caller who stays until all answers have ended, as the arena does."""

    def __init__(self, calls, answers, ends):
        self.calls, self.answers, self.ends = calls, answers, ends

    def __iter__(self):
        yield from (json.dumps(call) + "\n" for call in self.calls)
        for _ in range(6000):
            if (
                sum('"end"' in line or '"error"' in line for line in self.answers.getvalue().splitlines())
                >= self.ends
            ):
                return
            threading.Event().wait(0.02)


def serve(engine, calls, ends):
    answers = io.StringIO()
    EngineWorker(
        engine,
        lambda messages: [ord(c) % 128 for c in messages[-1]["content"]],
        Calls(calls, answers, ends),
        answers,
    ).run()
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def call(number, text, max_tokens=6):
    messages = [{"role": "user", "content": text}]
    return {"id": number, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def test_calls_are_answered_and_what_is_too_long_is_refused_and_a_cancelled_one_ends(engine):
    events = serve(engine, [call(1, "hello"), call(2, "x" * 40), call(3, "there", 20), {"cancel": 3}], 3)
    ends = {event["id"]: event for event in events if "end" in event or "error" in event}
    assert ends[1]["end"] == "length"
    assert "room for no answer" in ends[2]["error"]
    assert ends[3]["end"] == "cancel"
    assert len("".join(event.get("text", "") for event in events if event["id"] == 1)) == 6
