"""Logits and tokens do not depend on where the experts are: resident, streamed by any schedule, or cached."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serving.offload.runtime.checkpoint import locate
from serving.offload.schedule import SCHEDULES
from tests.serving.offload.runtime import tiny


def expect_the_whole_models(name, got):
    """Each token is the whole model's first choice, with its probability. In bfloat16 three digits agree, and
    later tokens of random weights may differ."""
    asked = [list(request.prompt_ids) for request in tiny.REQUESTS]
    logs = tiny.teacher_forced(name, [prompt + ids for prompt, (ids, _) in zip(asked, got)])
    for prompt, (ids, logprobs), logs_TV in zip(asked, got, logs):
        at = np.arange(len(ids)) + len(prompt) - 1
        if name == "bfloat16":
            np.testing.assert_allclose(logprobs, logs_TV[at, ids], atol=0.05)
            continue
        assert ids == logs_TV[at].argmax(-1).tolist()
        np.testing.assert_allclose(logprobs, logs_TV[at, ids], atol=1e-5)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_pieces_compute_what_the_whole_model_does(engines, name):
    expect_the_whole_models(name, engines.resident(name))


def test_another_models_answers_are_not_the_whole_models(engines):
    """The control."""
    with pytest.raises(AssertionError):
        expect_the_whole_models("tied", engines.resident("plain"))


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("name", ["plain", "dense between"])
def test_every_schedule_gives_the_resident_models_numbers_bit_by_bit(engines, name, schedule):
    runner = tiny.streaming(engines.checkpoint(name), schedule=schedule)
    assert engines.answers(name, runner) == engines.resident(name)


@pytest.mark.parametrize("rows", [1, 5])
def test_tokens_do_not_depend_on_how_rows_are_cut_into_micro_batches(engines, rows):
    config = dataclasses.replace(tiny.CONFIG, decode_rows=tuple(range(rows, 10, rows)))
    checkpoint = engines.checkpoint("plain")
    got = tiny.answers(tiny.engine(checkpoint, config, rows), tiny.streaming(checkpoint))
    assert [ids for ids, _ in got] == [ids for ids, _ in engines.resident("plain")]


def test_a_mixtral_checkpoint_is_read_as_it_lies(tmp_path):
    """Matrices per expert, stored [out, in]; at offsets that programs can use in place, and at others."""
    path = tiny.saved("plain", tmp_path, architecture="mixtral")
    checkpoint = locate(path)
    assert checkpoint.transposed
    assert checkpoint.packed
    engine = tiny.engine(checkpoint)
    got = tiny.answers(engine, tiny.streaming(checkpoint))
    expect_the_whole_models("plain", got)
    weights = path / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "a": "b" * 9})
    odd = locate(path)
    assert not odd.packed
    assert tiny.answers(engine, tiny.streaming(odd)) == got
