"""Logits and tokens do not depend on where the experts are: resident, streamed by any schedule, or cached."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serving import Engine, Request, Sampling
from serving.offload.runtime.checkpoint import load_rest, locate
from serving.offload.runtime.engine import OffloadEngine
from serving.offload.runtime.resident import ResidentRunner
from serving.offload.runtime.stack import OffloadStack
from serving.offload.runtime.streaming import StreamRunner
from serving.offload.schedule import SCHEDULES
from tests.serving.offload.runtime import tiny

REQUESTS = [
    Request(id=f"r{i}", client="a", prompt_ids=tiny.greedy(i, 3 + 4 * i),
            sampling=Sampling(max_tokens=3 + i % 3, temperature=0.0, logprobs=2))
    for i in range(5)
]  # fmt: skip
CONFIG = dataclasses.replace(tiny.CONFIG, logprobs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def engine(path, make_runner, rows=tiny.ROWS):
    checkpoint = locate(path)
    model = load_rest(checkpoint)
    stack = OffloadStack(model, rows=rows, transposed=checkpoint.transposed, runner=make_runner(checkpoint))
    return OffloadEngine(model, stack, CONFIG)


def answers(engine):
    outputs = engine.run(REQUESTS)
    return [(o.output_ids, [lp.logprob for lp in o.logprobs]) for o in outputs]


def resident(checkpoint):
    return ResidentRunner(tiny.all_resident(checkpoint).arrays, checkpoint.config.n_layers)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_pieces_compute_what_the_whole_model_does(folder, name):
    # (XLA does not come to an end with some bfloat16 mixture stacks as a whole.)
    deep = 1 if name == "bfloat16" else 0
    whole = Engine(tiny.network(name), dataclasses.replace(CONFIG, decode_rows=(), layers_per_program=deep))
    apart = engine(tiny.saved(name, folder), resident)
    for (ids, logprobs), (want_ids, want) in zip(answers(apart), answers(whole)):
        if name == "bfloat16":  # three digits: later tokens of random weights may differ, the first may not
            np.testing.assert_allclose(logprobs[0], want[0], atol=0.05)
            continue
        assert ids == want_ids
        np.testing.assert_allclose(logprobs, want, atol=1e-5)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("name", ["plain", "dense between"])
def test_every_schedule_gives_the_resident_models_numbers_bit_by_bit(folder, name, schedule):
    path = tiny.saved(name, folder)

    def streaming(checkpoint):
        buffers = tiny.layer_buffers(checkpoint)
        return StreamRunner(buffers, {}, n_layers=checkpoint.config.n_layers, schedule=schedule)

    assert answers(engine(path, streaming)) == answers(engine(path, resident))


@pytest.mark.parametrize("rows", [1, 2, 5, 10])
def test_tokens_do_not_depend_on_how_rows_are_cut_into_micro_batches(folder, rows):
    config = dataclasses.replace(CONFIG, decode_rows=tuple(range(rows, 10, rows)))
    checkpoint = locate(tiny.saved("plain", folder))
    model = load_rest(checkpoint)
    runner = StreamRunner(tiny.layer_buffers(checkpoint), {}, n_layers=checkpoint.config.n_layers)
    stack = OffloadStack(model, rows=rows, transposed=checkpoint.transposed, runner=runner)
    whole = Engine(tiny.network("plain"), dataclasses.replace(CONFIG, decode_rows=(), layers_per_program=0))
    got = [ids for ids, _ in answers(OffloadEngine(model, stack, config))]
    assert got == [ids for ids, _ in answers(whole)]


@pytest.mark.parametrize("aligned", [True, False])
def test_a_mixtral_checkpoint_is_read_as_it_lies(tmp_path, aligned):
    """Matrices per expert, stored [out, in]; at offsets that programs can use in place, or not."""
    path = tiny.saved("plain", tmp_path, architecture="mixtral")
    if not aligned:
        weights = path / "model.safetensors"
        save_file(load_file(weights), weights, metadata={"format": "pt", "a": "b" * 9})
    checkpoint = locate(path)
    assert checkpoint.transposed
    assert checkpoint.packed == aligned
    got = answers(engine(path, lambda c: StreamRunner(tiny.layer_buffers(c), {}, n_layers=c.config.n_layers)))
    whole = Engine(tiny.network("plain"), dataclasses.replace(CONFIG, decode_rows=(), layers_per_program=0))
    for (ids, logprobs), (want_ids, want) in zip(got, answers(whole)):
        assert ids == want_ids
        np.testing.assert_allclose(logprobs, want, atol=1e-5)
