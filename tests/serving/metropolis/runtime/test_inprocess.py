"""Our engine as a language model: its answers and its log-probabilities against the model without a cache."""

import asyncio

import numpy as np
import pytest

from mixattn.evals.llm import CallFailed, Likelihood
from serving.config import EngineConfig, Limits
from serving.engine.engine import Engine
from serving.metropolis.runtime.inprocess import EngineModel
from tests.serving import tiny

TALK = [{"role": "user", "content": "hi"}]
CONFIG = {"max_slots": 2, "page_size": 4, "max_request_tok": 64, "limits": Limits(chunk_tok=16)}


def encode(text: str) -> list[int]:
    return [byte % tiny.VOCAB for byte in text.encode()]


def act(what, **more):
    async def main():
        model = EngineModel(Engine(tiny.model(), EngineConfig(**CONFIG, **more)), encode, str)
        try:
            return await what(model)
        finally:
            model.close()

    return asyncio.run(main())


def test_a_conversation_is_answered_as_its_text_is():
    ids = encode("User: hi\n\nAssistant:")
    answer = act(lambda model: model.complete_messages(TALK, max_tokens=4))
    assert answer.text == str(tiny.teacher_forced(ids, 4))
    assert answer.usage.output_tok == 4


def test_likelihoods_are_those_of_the_model_without_a_cache():
    found = act(lambda model: model.likelihoods(TALK, ["yes", "no!"]), prompt_logprobs=True, logprobs=0)
    prompt = encode("User: hi\n\nAssistant:")
    for text, likelihood in zip(["yes", "no!"], found, strict=True):
        ids = prompt + encode(text)
        logits_TV = tiny.logits(ids).astype(np.float64)
        logprobs_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        oracle = sum(logprobs_TV[t - 1, ids[t]] for t in range(len(prompt), len(ids)))
        assert likelihood == Likelihood(pytest.approx(oracle, abs=1e-3), 3)


def test_an_engine_without_prompt_logprobs_says_so():
    with pytest.raises(CallFailed, match="logprobs") as why:
        act(lambda model: model.likelihoods(TALK, ["yes"]))
    assert not why.value.transient
