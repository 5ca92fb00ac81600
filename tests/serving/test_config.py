"""A configuration that cannot serve is refused in words, before anything is compiled."""

import dataclasses

import pytest

from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from tests.serving.tiny import model

GOOD = EngineConfig(max_slots=2, page_size=4, max_request_tok=32)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"max_slots": 0}, "max_slots is 0"),
        ({"max_slots": 2.5}, "max_slots is 2.5"),
        ({"page_size": True}, "page_size is True"),
        ({"max_request_tok": 1}, "max_request_tok is 1; it must be at least 2"),
        ({"num_pages": 1}, "num_pages is 1"),
        ({"window_pages": -3}, "window_pages is -3"),
        ({"prefill_rows": ()}, r"prefill_rows=\(\)"),
        ({"prefill_rows": (0, 4)}, r"prefill_rows=\(0, 4\)"),
        ({"decode_rows": (3,)}, r"decode_rows=\(3,\)"),
        ({"eos_ids": (-1,)}, r"eos_ids=\(-1,\)"),
        ({"eos_ids": tuple(range(9))}, "9 eos_ids"),
        ({"logprobs": -2}, "logprobs is -2"),
        ({"prompt_logprobs": True}, "prompt_logprobs is on"),
        ({"limits": Limits(decode_steps=(0, 1))}, r"decode_steps=\(0, 1\)"),
        ({"limits": Limits(decode_steps=(4, 2))}, r"decode_steps=\(4, 2\)"),
        ({"limits": Limits(decode_steps=(1, 1.5))}, r"decode_steps=\(1, 1.5\)"),
        ({"limits": Limits(chunk_tok=0)}, "chunk_tok=0"),
        ({"limits": Limits(step_tok=8)}, "step_tok=8"),
        ({"limits": Limits(admit_every=0)}, "admit_every=0"),
        ({"limits": Limits(admission="never")}, "admission='never'"),
    ],
)
def test_a_configuration_that_cannot_serve_is_refused_by_name(bad, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(GOOD, **bad).check()


def test_what_only_the_model_can_tell_is_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match="eos_ids name token 99 of a vocabulary of 64"):
        Engine(model(), dataclasses.replace(GOOD, eos_ids=(3, 99)))
    with pytest.raises(ValueError, match="nope"):
        Engine(model(), dataclasses.replace(GOOD, policy="nope"))
