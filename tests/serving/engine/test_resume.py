"""An output that another engine has begun goes on here as if nothing had happened."""

import math

import pytest

from serving.request import Request, Sampling
from tests.serving.engine.test_sampling import NET, PROMPT, rich
from tests.serving.tiny import byte_text, engine, finish, model

CASES = {
    "greedy": Sampling(max_tokens=12),
    "seeded": Sampling(max_tokens=12, temperature=1.1, top_p=0.9, seed=7),
    "penalties": Sampling(max_tokens=12, frequency_penalty=0.9, presence_penalty=0.4, repetition_penalty=1.3),
    "min_tokens": Sampling(max_tokens=12, min_tokens=9, stop_ids=tuple(range(0, 64, 8))),
    "logprobs": Sampling(max_tokens=12, temperature=0.8, seed=1, logprobs=3, prompt_logprobs=1),
}


def run(sampling, resume=(), decode=None):
    eng = rich(decode=decode)
    eng.submit(Request(client="a", prompt_ids=PROMPT, sampling=sampling, id="x", resume_ids=resume))
    return finish(eng)


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_output_has_the_same_tokens_wherever_it_was_cut(name):
    sampling = CASES[name]
    whole = run(sampling)[-1].output
    for cut in range(1, len(whole.output_ids)):
        deltas = run(sampling, whole.output_ids[:cut])
        output = deltas[-1].output
        assert output.output_ids == whole.output_ids
        assert output.finish_reason == whole.finish_reason
        assert [id for d in deltas for id in d.ids] == whole.output_ids[cut:], "each new token once"
        told = [lp for d in deltas for lp in d.logprobs]
        for ours, theirs in zip(output.logprobs, whole.logprobs):
            assert ours.id == theirs.id
        assert [lp.id for lp in told] == [lp.id for lp in whole.logprobs[cut:]]
        assert all(math.isnan(lp.logprob) for lp in output.logprobs[:cut])
        assert [lp.id for lp in output.prompt_logprobs] == [lp.id for lp in whole.prompt_logprobs]


def test_without_the_earlier_tokens_the_penalties_would_differ():
    """The negative control: the same tokens as part of the prompt, which is what a plain client could do."""
    sampling = CASES["penalties"]
    whole = run(sampling)[-1].output.output_ids
    eng = rich()
    eng.submit(Request(client="a", prompt_ids=[*PROMPT, *whole[:6]], sampling=sampling))
    assert finish(eng)[-1].output.output_ids[:6] != whole[6:12]


def test_stop_texts_and_characters_may_lie_across_the_cut():
    free = run(Sampling(max_tokens=12), decode=byte_text)[-1].output
    stop = byte_text(free.output_ids[3:6])
    sampling = Sampling(max_tokens=12, stop=(stop,))
    whole = run(sampling, decode=byte_text)[-1].output
    assert whole.finish_reason == "stop"
    for cut in range(1, len(whole.output_ids)):
        deltas = run(sampling, whole.output_ids[:cut], decode=byte_text)
        assert deltas[-1].output.text == whole.text == "".join(d.text for d in deltas)
        assert deltas[-1].output.stop == stop


def test_a_request_that_has_nothing_left_to_produce_is_refused():
    with pytest.raises(ValueError, match="resumes behind 3 tokens"):
        Request(client="a", prompt_ids=[1], sampling=Sampling(max_tokens=3), resume_ids=[1, 2, 3])
    with pytest.raises(ValueError, match="n=2"):
        Request(client="a", prompt_ids=[1], sampling=Sampling(max_tokens=3, n=2), resume_ids=[1])
    with pytest.raises(ValueError, match="names token 99"):
        engine(model(NET)).submit(
            Request(client="a", prompt_ids=[1], sampling=Sampling(max_tokens=3), resume_ids=[99])
        )
