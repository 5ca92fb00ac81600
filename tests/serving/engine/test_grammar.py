"""Masks of allowed tokens: what a grammar forbids is never sampled, and no other row notices."""

import functools

import numpy as np
import pytest

from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.request import Request, Sampling
from tests.serving.tiny import LONGEST, VOCAB, engine, finish, logits, model, workload

LENGTH = 7


class Alternating:
    """Even tokens, then odd ones, in turn; ends after `LENGTH` tokens."""

    def __init__(self):
        self.said = []

    def allowed(self):
        return [v for v in range(VOCAB) if v % 2 == len(self.said) % 2]

    def fill(self, allowed_W):
        allowed_W[:] = 0
        for v in self.allowed():
            allowed_W[v // 32] |= np.uint32(1 << (v % 32))

    def accept(self, id):
        assert id in self.allowed()
        self.said.append(id)
        return "stop" if len(self.said) == LENGTH else None


@functools.cache
def programs():
    return masked_engine(None).programs


def masked_engine(shared, **more):
    config = EngineConfig(
        max_slots=4,
        page_size=4,
        max_request_tok=LONGEST,
        prefill_rows=(4,),
        num_pages=65,
        window_pages=129,
        limits=Limits(chunk_tok=16, step_tok=32),
        grammar=True,
        **more,
    )
    return Engine(model(), config, programs=shared)


def masked(i, n=1, max_tokens=20, **more):
    prompt = list(range(1 + i, 12 + i))
    return Request(
        client="g",
        prompt_ids=prompt,
        sampling=Sampling(max_tokens=max_tokens, n=n, **more),
        grammar=Alternating,
    )


def test_greedy_tokens_are_the_best_of_the_allowed_ones():
    eng = masked_engine(programs())
    requests = [masked(i) for i in range(3)]
    for request, output in zip(requests, eng.run(requests), strict=True):
        assert (output.finish_reason, len(output.output_ids)) == ("stop", LENGTH)
        tokens, grammar = list(request.prompt_ids), Alternating()
        for id in output.output_ids:
            row = logits(tokens)[-1]
            want = max(grammar.allowed(), key=lambda v: (row[v], -v))
            assert id == want
            grammar.accept(id)
            tokens.append(id)


@pytest.mark.parametrize("overlap", [False, True])
def test_rows_beside_a_grammar_keep_their_tokens(overlap):
    plain = workload(n=6)
    want = [o.output_ids for o in engine().run(plain)]
    eng = masked_engine(programs(), overlap=overlap)
    mixed = eng.run([plain[0], masked(0, n=2, temperature=1.0), *plain[1:], masked(1, temperature=1.0)])
    got = [o for o in mixed if o.client != "g"]
    assert [o.output_ids for o in got] == want
    for output in mixed:
        if output.client == "g":
            assert [v % 2 for v in output.output_ids] == [0, 1, 0, 1, 0, 1, 0]
    finish(eng)


def test_an_output_may_also_end_by_its_length_or_in_the_middle():
    eng = masked_engine(programs())
    short, cut = eng.run([masked(0, max_tokens=3), masked(1, max_tokens=5)])
    assert [o.finish_reason for o in (short, cut)] == ["length", "length"]


def test_an_engine_without_masks_refuses_a_grammar_by_name():
    with pytest.raises(ValueError, match=r"config\.grammar is off"):
        engine().submit(masked(0))
