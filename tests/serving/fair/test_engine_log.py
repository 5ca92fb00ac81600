"""The bounds hold on the event log of the engine with a real model, not only in virtual time."""

import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.fair.ledger import SCALE
from serving.request import Request, Sampling
from tests.serving.fair.oracle import Oracle

PAGE, PAGES, VOCAB = 4, 41, 64


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=64,
        vocab_size=VOCAB,
        kv_wiring="0_1",
        window=12,
    )
    return Transformer(config, rngs=nnx.Rngs(3))


def requests():
    """A floods, B's prompts share a prefix, C sends little: 60 requests, all at once."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, VOCAB, 16).tolist()
    for i in range(60):
        client = "AAABBC"[i % 6]
        own = rng.integers(0, VOCAB, int(rng.integers(2, 20))).tolist()
        prompt = shared + own if client == "B" else own
        yield Request(
            client=client,
            prompt_ids=prompt,
            id=f"{client}{i}",
            sampling=Sampling(max_tokens=int(rng.integers(1, 14)), ignore_eos=True),
        )


@pytest.mark.parametrize(("policy", "options", "cached"), [("vtc", {}, 1), ("dlpm", {"quantum_tok": 30}, 0)])
def test_the_engine_keeps_the_bounds_on_its_own_event_log(model, policy, options, cached):
    log = []
    config = EngineConfig(
        max_slots=4,
        page_size=PAGE,
        num_pages=PAGES,
        max_request_tok=64,
        prefill_rows=(4,),
        policy=policy,
        policy_options=options,
        limits=Limits(chunk_tok=16, step_tok=32),
    )
    engine = Engine(model, config, log=log.append)
    asked = list(requests())
    outputs = engine.run(asked)
    assert [len(out.output_ids) for out in outputs] == [r.sampling.max_tokens for r in asked]
    seen = Oracle(log, cached=cached)
    billed = {client: amount / SCALE for client, amount in engine.scheduler.policy.served().items()}
    assert billed == dict(seen.served), "what was billed is what the log says was executed"
    longest = max(len(r.prompt_ids) for r in asked)
    bound = engine.scheduler.policy.gap_bound(
        memory_tok=(PAGES - 1) * PAGE, max_prompt_tok=longest, max_hit_tok=longest
    )
    assert 0 < seen.gap() <= bound
    clients = list(seen.served)
    assert all(seen.drift(f, g, both=False) <= 2 * bound for f in clients for g in clients if f != g)
    assert sum(event["event"] == "finish" for event in log) == len(asked)
