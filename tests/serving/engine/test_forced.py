"""Tokens that a request gives are read as if the model had said them, and have their log-probabilities."""

import dataclasses

import numpy as np
import pytest

from mixattn.forced import log_likelihoods
from mixattn.keep import Keep
from serving.config import KeepSettings, Limits
from serving.request import Request, RequestKeep, Sampling
from tests.serving.engine.keep_cases import kept_engine
from tests.serving.tiny import VOCAB, byte_text, engine, finish, model

NET = model("0_1s")
SLAB = KeepSettings(slab_tok=12, recent_tok=4, scorers=("streaming",))
IDS = np.random.default_rng(3).integers(VOCAB, size=40).tolist()
PROMPT, GIVEN = IDS[:20], IDS[20:29]


def kept(**more):
    return kept_engine(NET, keep=SLAB, rich=True, **more)


def request(keep=None, given=GIVEN, **sampling):
    sampling = {"max_tokens": len(given), "logprobs": 1, "ignore_eos": True} | sampling
    return Request(client="a", prompt_ids=PROMPT, forced_ids=given, keep=keep, sampling=Sampling(**sampling))


def oracle(scorer="h2o", budget=12, given=GIVEN):
    keep = Keep(scorer, budget, recent=4)
    return log_likelihoods(NET, [[*PROMPT, *given]], len(PROMPT), keep=keep)[0]


def told(output):
    return [lp.logprob for lp in output.logprobs]


@pytest.mark.parametrize("steps", [(1,), (4, 1), (8, 4, 1)], ids=lambda steps: f"N{steps[0]}")
@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
def test_given_tokens_come_out_with_the_likelihoods_of_a_row_that_reads_them(steps, overlap):
    eng = kept(limits=Limits(chunk_tok=16, step_tok=32, decode_steps=steps), overlap=overlap)
    small = RequestKeep(scorer="streaming", budget=9)
    every = RequestKeep(everything=True)
    outputs = eng.run([request(), request(small), request(every)])
    assert all(output.output_ids == GIVEN for output in outputs)
    np.testing.assert_allclose(told(outputs[0]), oracle(), atol=1e-4)
    np.testing.assert_allclose(told(outputs[1]), oracle("streaming", 9), atol=1e-4)
    np.testing.assert_allclose(told(outputs[2]), oracle(budget=64), atol=1e-4)
    assert np.abs(np.subtract(told(outputs[0]), told(outputs[2]))).max() > 1e-3, "the control"


def test_an_output_goes_on_behind_given_tokens_as_if_it_had_said_them():
    free = kept().run([request(given=(), max_tokens=12)])[0]
    for count in (1, 5, 11):
        [output] = kept().run([request(given=free.output_ids[:count], max_tokens=12)])
        assert output.output_ids == free.output_ids
        np.testing.assert_allclose(told(output), told(free), atol=1e-5)
    [other] = kept().run([request(given=GIVEN[:3], max_tokens=12)])
    assert other.output_ids[3:] != free.output_ids[3:]


def test_given_tokens_end_nothing_and_the_next_one_may():
    free = kept().run([request(max_tokens=14)])[0].output_ids
    assert free[:9] == GIVEN
    stops = (GIVEN[0], GIVEN[4], free[9])
    [output] = kept().run([request(max_tokens=14, stop_ids=stops)])
    assert output.output_ids == free[:10]
    assert output.stop == free[9]
    [output] = kept(decode=byte_text).run([request(stop=(byte_text(GIVEN[2:4]),))])
    assert output.output_ids == GIVEN


def test_after_a_lost_state_given_tokens_are_read_again():
    eng = kept()
    eng.submit(request(max_tokens=12))
    whole = kept().run([request(max_tokens=12)])[0]
    for _ in range(4):
        eng.step()
    eng.scheduler.drop_all_pages(eng.clock())
    eng.state = eng.programs.fresh_state()
    output = finish(eng)[-1].output
    assert output.output_ids == whole.output_ids
    np.testing.assert_allclose(told(output), told(whole), atol=1e-5)


def test_several_outputs_of_one_request_begin_alike():
    [first, second] = kept().run([request(n=2, temperature=1.5, max_tokens=14)])
    assert first.output_ids[:9] == second.output_ids[:9] == GIVEN
    assert first.output_ids != second.output_ids


def test_what_cannot_be_given_is_refused():
    with pytest.raises(ValueError, match="begins with 9 given tokens"):
        request(max_tokens=8)
    with pytest.raises(ValueError, match="a grammar or min_tokens=2"):
        request(min_tokens=2)
    with pytest.raises(ValueError, match="resumes behind other tokens"):
        dataclasses.replace(request(max_tokens=12), resume_ids=(GIVEN[0] + 1,))
    with pytest.raises(ValueError, match=r"keep\.slab_tok is 0"):
        engine(NET).submit(request())
    with pytest.raises(ValueError, match="names token 999"):
        kept().submit(request(given=(999,)))
