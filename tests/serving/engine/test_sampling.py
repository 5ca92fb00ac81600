"""Sampling parameters in the engine, each against its definition, on the uncached model's logits."""

import dataclasses

import numpy as np
import pytest

from serving.config import Limits
from serving.request import Request, Sampling
from tests.serving.tiny import VOCAB, byte_text, engine, finish, logits, model, teacher_forced, workload

NET = "0_1s"  # two layers: these tests compile the richest programs
PROMPT = [5, 9, 5, 33, 9, 12, 7]


def rich(**more):
    return engine(model(NET), rich=True, debug=True, **more)


def info(eng, sampling: Sampling, prompt=PROMPT):
    [*outputs] = eng.run([Request(client="a", prompt_ids=prompt, sampling=sampling)])
    return outputs[0] if sampling.n == 1 else outputs


def has_penalties(prompt, outputs, s: Sampling) -> np.ndarray:
    """Logits of the next token, by the definition."""
    row = logits([*prompt, *outputs], model(NET))[-1].astype(np.float64)
    for v in {*prompt, *outputs}:
        row[v] = row[v] / s.repetition_penalty if row[v] > 0 else row[v] * s.repetition_penalty
    for v in set(outputs):
        row[v] -= s.frequency_penalty * outputs.count(v) + s.presence_penalty
    for v, bias in s.logit_bias.items():
        row[v] += bias
    return row


def test_everything_compiled_in_costs_one_program_more_than_nothing():
    """One for each prefill shape and number of decode rows, and one for prompts with log-probabilities."""
    sizes = {"chunk_sizes": (4,), "decode_rows": (2,)}
    plain = engine(model(NET), **sizes).stats().programs
    everything = rich(**sizes).stats().programs
    assert (plain, everything) == (4, 5)


def test_what_no_live_row_asks_for_is_not_computed():
    """The rows of an ended request keep its parameters, and cost nothing."""
    eng = rich()
    eng.run(
        [
            Request(
                client="a", prompt_ids=PROMPT, sampling=Sampling(max_tokens=3, logprobs=2, presence_penalty=1)
            )
        ]
    )
    assert bool(np.asarray(eng.state.rows.logprobs_B).any())
    [output] = eng.run([Request(client="a", prompt_ids=PROMPT, sampling=Sampling(max_tokens=3))])
    assert output.output_ids == teacher_forced(PROMPT, 3, model(NET))
    assert not np.asarray(eng.state.rows.penalties.active_B)[0]


CASES = {
    "repetition": Sampling(max_tokens=12, repetition_penalty=1.8),
    "frequency": Sampling(max_tokens=12, frequency_penalty=1.5),
    "presence": Sampling(max_tokens=12, presence_penalty=-1.5),
    "bias": Sampling(max_tokens=12, logit_bias={3: 4.0, 60: -100.0}),
    "all": Sampling(
        max_tokens=12,
        repetition_penalty=1.3,
        frequency_penalty=0.7,
        presence_penalty=0.4,
        logit_bias={8: 1.5},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_penalties_and_bias_follow_their_definition_also_after_a_preemption(name):
    sampling = CASES[name]
    want: list[int] = []
    for _ in range(sampling.max_tokens):
        want.append(int(np.argmax(has_penalties(PROMPT, want, sampling))))
    eng = rich(limits=Limits(chunk_tok=16, step_tok=32, decode_steps=(4, 1)))
    assert info(eng, sampling).output_ids == want
    id = eng.submit(Request(client="a", prompt_ids=PROMPT, sampling=sampling))
    eng.step()
    eng.step()
    eng.scheduler.preempt(id, eng.clock())
    assert finish(eng)[-1].output.output_ids == want
    plain = teacher_forced(PROMPT, sampling.max_tokens, model(NET))
    assert want != plain, "the case shows nothing if the plain model says the same"


def test_log_probabilities_are_those_of_the_shaped_logits():
    sampling = dataclasses.replace(CASES["all"], logprobs=3)
    out = info(rich(), sampling)
    assert len(out.logprobs) == len(out.output_ids)
    for n, lp in enumerate(out.logprobs):
        row = has_penalties(PROMPT, out.output_ids[:n], sampling)
        want = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert lp.id == out.output_ids[n]
        np.testing.assert_allclose(lp.logprob, want[lp.id], atol=1e-4)
        best = np.argsort(-want, kind="stable")[:3]
        assert [i for i, _ in lp.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in lp.top], want[best], atol=1e-4)


def test_prompt_log_probabilities_cover_the_prompt_whatever_the_chunks_and_the_cache():
    prompt = np.random.default_rng(0).integers(0, VOCAB, 40).tolist()
    row = logits(prompt, model(NET)).astype(np.float64)
    log_p = (
        row
        - np.log(np.exp(row - row.max(1, keepdims=True)).sum(1, keepdims=True))
        - row.max(1, keepdims=True)
    )
    eng = rich(limits=Limits(chunk_tok=7, step_tok=32))
    info(eng, Sampling(max_tokens=1), prompt)
    out = info(eng, Sampling(max_tokens=2, prompt_logprobs=1), prompt)
    assert out.hit_tok == 0, "a prompt whose log-probabilities are wanted is computed whole"
    assert [lp.id for lp in out.prompt_logprobs] == prompt[1:]
    want = [log_p[i, v] for i, v in enumerate(prompt[1:])]
    np.testing.assert_allclose([lp.logprob for lp in out.prompt_logprobs], want, atol=1e-4)
    assert [lp.top[0][0] for lp in out.prompt_logprobs] == log_p[:-1].argmax(1).tolist()
    assert out.logprobs == (), "not asked for"


def test_no_stop_before_min_tokens():
    free = info(engine(model(NET)), Sampling(max_tokens=12)).output_ids
    stop = free[2]
    early = info(engine(model(NET)), Sampling(max_tokens=12, stop_ids=(stop,)))
    assert (early.finish_reason, early.stop, early.output_ids) == ("stop", stop, free[:3])
    late = info(engine(model(NET)), Sampling(max_tokens=12, min_tokens=6, stop_ids=(stop,)))
    assert stop not in late.output_ids[:6], "it is not even drawn"
    assert len(late.output_ids) > 6


def test_a_seeded_request_draws_the_same_tokens_alone_in_company_and_after_preemption():
    sampling = Sampling(max_tokens=14, temperature=1.1, top_p=0.9, seed=7)
    alone = info(engine(), sampling).output_ids
    assert alone != info(engine(), dataclasses.replace(sampling, seed=8)).output_ids
    eng = engine(limits=Limits(chunk_tok=3, step_tok=6, decode_steps=(4, 1)))
    for request in workload(seed=1, n=6, temperature=0.7):
        eng.submit(request)
    id = eng.submit(Request(client="b", prompt_ids=PROMPT, sampling=sampling))
    done = {}
    for step in range(500):
        done |= {d.id: d.output for d in eng.step() if d.output}
        req = eng.scheduler.running.get(id)
        if step % 3 == 0 and req is not None and not req.prefilling and req.preemptions < 3:
            eng.scheduler.preempt(id, eng.clock())
        if not eng.live:
            break
    assert done[id].output_ids == alone
    assert eng.stats().preemptions > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_program_level_does_not_change_a_rows_tokens(temperature):
    """A plain request in the company of one that asks for everything."""
    sampling = Sampling(max_tokens=14, temperature=temperature, top_k=20, seed=3)
    plain = info(engine(model(NET)), sampling).output_ids
    eng = rich()
    eng.submit(Request(client="x", prompt_ids=[1, 2], sampling=dataclasses.replace(CASES["all"], logprobs=5)))
    assert info(eng, sampling).output_ids == plain


def test_n_outputs_share_one_prefill_and_the_first_is_what_one_would_be():
    prompt = np.random.default_rng(1).integers(0, VOCAB, 34).tolist()
    one = Sampling(max_tokens=8, temperature=1.0, seed=5)
    alone = info(engine(), one, prompt)
    eng = engine()
    outputs = info(eng, dataclasses.replace(one, n=3), prompt)
    assert [o.index for o in outputs] == [0, 1, 2]
    assert outputs[0].output_ids == alone.output_ids
    assert len({tuple(o.output_ids) for o in outputs}) == 3, "drawn apart"
    assert eng.stats().hit_tok == 2 * 32, "the others compute only what no whole page holds"


def test_stop_texts_end_a_request_without_showing():
    free = info(engine(decode=byte_text), Sampling(max_tokens=16))
    assert free.text == byte_text(free.output_ids)
    stop = free.text[4:6]
    eng = engine(decode=byte_text)
    id = eng.submit(Request(client="a", prompt_ids=PROMPT, sampling=Sampling(max_tokens=16, stop=(stop,))))
    deltas = [d for d in finish(eng) if d.id == id]
    shown = "".join(d.text for d in deltas)
    out = deltas[-1].output
    at = free.text.index(stop)
    assert shown == out.text == free.text[:at]
    assert (out.finish_reason, out.stop) == ("stop", stop)
    assert out.output_ids == free.output_ids[: at + 2], "tokens behind it are neither kept nor billed"
    assert [i for d in deltas for i in d.ids] == out.output_ids


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        (Sampling(logit_bias={99: 1.0}), "token 99 of a vocabulary of 64"),
        (Sampling(presence_penalty=1.0), "config.penalties is off"),
        (Sampling(logprobs=2), "asks for 2 logprobs"),
        (Sampling(stop=("x",)), "no `decode`"),
        (Sampling(stop_ids=tuple(range(9))), "9 stop ids; at most 8"),
    ],
)
def test_what_is_not_compiled_in_is_refused_at_once(sampling, why):
    eng = engine()
    with pytest.raises(ValueError, match=why):
        eng.submit(Request(client="a", prompt_ids=[1], sampling=sampling))
    assert not eng.live


@pytest.mark.parametrize(
    "bad",
    [
        {"min_tokens": 17},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 2.5},
        {"n": 0},
        {"stop": ("",)},
        {"logit_bias": {1: float("nan")}},
        {"temperature": float("nan")},
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=f"sampling.{next(iter(bad))} is"):
        Sampling(**bad)


def test_a_deadline_ends_a_request_wherever_it_is():
    now = [0.0]
    eng = engine(clock=lambda: now[0])
    slow = Sampling(max_tokens=40)
    ids = [eng.submit(Request(client="a", prompt_ids=[i], sampling=slow, deadline_s=5.0)) for i in range(6)]
    for _ in range(3):
        eng.step()
        now[0] += 1
    now[0] = 5.0
    ended = {d.id: d.output for d in finish(eng) if d.output}
    assert [ended[id].finish_reason for id in ids] == ["deadline"] * 6
    assert ended[ids[0]].output_ids, "what it had is returned"
    assert not ended[ids[5]].output_ids, "it was still waiting"


def test_priority_is_a_head_start_among_a_clients_own_requests():
    order: list[str] = []
    eng = engine(policy="vtc", log=lambda e: order.append(e["id"]) if e["event"] == "admit" else None)
    long = Sampling(max_tokens=8)
    for i in range(8):
        eng.submit(Request(client="a", id=f"p{i}", prompt_ids=[i], sampling=long, priority=i // 6))
    finish(eng)
    assert order[:2] == ["p6", "p7"]
