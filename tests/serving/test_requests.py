"""What a client may ask: a value of the wrong kind is refused where it is made, and nobody else notices."""

import numpy as np
import pytest

from serving.request import Request, Sampling

INT = "a whole number"


@pytest.mark.parametrize(
    ("bad", "law"),
    [
        ({"max_tokens": 4.5}, INT),  # a loop that counts down to 0 by ones would never end
        ({"max_tokens": True}, INT),
        ({"max_tokens": "4"}, INT),
        ({"max_tokens": 2**31}, INT),
        ({"min_tokens": None}, "from 0 to max_tokens=16"),
        ({"n": 2.5}, INT),
        ({"top_k": 1.5}, "-1"),
        ({"top_k": 2**40}, "-1"),
        ({"top_k": -2}, "-1"),
        ({"seed": "x"}, "None or a whole number"),
        ({"seed": 1.5}, INT),
        ({"temperature": "hot"}, "a number"),
        ({"temperature": True}, "a number"),
        ({"temperature": 1e300}, "a number"),
        ({"temperature": float("nan")}, "a number"),
        ({"top_p": 1e-50}, "a number"),  # 0 in float32, and then no token is likely enough
        ({"top_p": None}, "a number"),
        ({"min_p": "0.1"}, "a number"),
        ({"repetition_penalty": 1e-50}, "a number"),
        ({"logit_bias": {3: 1e300}}, "numbers"),
        ({"logit_bias": {3: float("-inf")}}, "numbers"),
        ({"logit_bias": {"3": 1.0}}, "numbers"),
        ({"logit_bias": [1.0, 2.0]}, "numbers"),
        ({"stop": "ab"}, "texts"),  # not "a" and "b"
        ({"stop": (1, 2)}, "texts"),
        ({"stop": (b"a",)}, "texts"),
        ({"stop_ids": (1.0,)}, "ids"),
        ({"stop_ids": "12"}, "ids"),
        ({"stop_ids": 12}, "ids"),
        ({"logprobs": 1.5}, INT),
        ({"prompt_logprobs": True}, INT),
        ({"ignore_eos": "no"}, "True or False"),
        ({"include_stop": 1}, "True or False"),
    ],
)
def test_a_sampling_value_of_the_wrong_kind_is_refused_by_name(bad, law):
    with pytest.raises(ValueError, match=f"^sampling.{next(iter(bad))} is .*; it must be .*{law}"):
        Sampling(**bad)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"prompt_ids": "abc"}, "token ids must be whole numbers"),
        ({"prompt_ids": [1.5]}, "token ids must be whole numbers"),
        ({"prompt_ids": np.ones((2, 3), np.int32)}, "token ids must be whole numbers"),
        ({"prompt_ids": 7}, "token ids must be whole numbers"),
        ({"prompt_ids": np.zeros(0, np.int32)}, "empty prompt"),
        ({"cache_salt": None}, "cache_salt is None"),
        ({"cache_salt": ["t"]}, r"cache_salt is \['t'\]"),
        ({"client": ["a"]}, r"client is \['a'\]"),
        ({"id": 5}, "id is 5"),
        ({"deadline_s": "1"}, "deadline of '1'"),
        ({"deadline_s": float("nan")}, "deadline of nan"),
        ({"deadline_s": -1.0}, "deadline of -1.0"),
        ({"priority": 0.5}, "priority 0.5"),
        ({"priority": 2**21}, "priority 2097152"),
    ],
)
def test_a_request_of_the_wrong_kind_is_refused_by_name(bad, why):
    with pytest.raises(ValueError, match=why):
        Request(**{"client": "a", "prompt_ids": [1, 2], **bad})


def test_a_long_value_is_not_repeated_whole():
    with pytest.raises(ValueError, match="logit_bias") as told:
        Sampling(logit_bias=dict.fromkeys(range(10**5), float("nan")))
    assert len(str(told.value)) < 300


def test_numbers_of_numpy_are_numbers():
    sampling = Sampling(
        max_tokens=np.int64(3), temperature=np.float32(0.5), seed=np.uint32(7), logit_bias={np.int32(3): 1}
    )
    assert sampling.max_tokens == 3
    assert Request(client="a", prompt_ids=np.arange(3), sampling=sampling).prompt_ids == (0, 1, 2)


def test_a_prompt_is_the_requests_own_whatever_becomes_of_the_callers_array():
    """The prefix tree remembers prompts: if it kept the caller's array, what is cached would change names."""
    buffer = np.arange(4, dtype=np.int32)
    request = Request(client="a", prompt_ids=buffer)
    buffer[:] = 9
    assert request.prompt_ids == (0, 1, 2, 3)


def test_zero_means_for_top_k_and_top_p_what_it_means_elsewhere():
    """Off, as in transformers and vLLM; and the likeliest token only."""
    assert Sampling(top_k=0) == Sampling()
    assert 0 < Sampling(top_p=0).top_p < 1e-20


@pytest.mark.parametrize("field", ["id", "client", "cache_salt"])
def test_half_of_a_surrogate_pair_is_no_text(field):
    """It can be neither written nor hashed, and would fail in the middle of a step."""
    with pytest.raises(ValueError, match=rf"{field} is '.ud800x'; it must be text"):
        Request(**{"client": "a", "prompt_ids": [1], field: "\ud800x"})
    with pytest.raises(ValueError, match=r"sampling\.stop"):
        Sampling(stop=("\udfff",))
