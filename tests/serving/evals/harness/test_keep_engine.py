"""Likelihoods and answers of the harness' jobs are those of a row that is cut and read token by token."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from mixattn import generate
from mixattn.evals.longcontext.policies import KeepPolicy
from mixattn.forced import log_likelihoods
from mixattn.keep import Keep
from serving.evals.harness.jobs import ScoreJob, WriteJob
from serving.evals.harness.keep_engine import HarnessSizes, KeepEngine
from tests.serving.tiny import VOCAB, byte_text, logits, model

NET = model("0_1s")
OPTIONS = (("sinks", 1), ("recent", 0.5))
BUDGET = 6
FULL = KeepPolicy("full")
SMALL = [KeepPolicy(scorer, BUDGET, OPTIONS) for scorer in ("h2o", "streaming", "random", "tova")]
WIDE = [dataclasses.replace(policy, budget=48) for policy in SMALL[:2]]
SIZES = HarnessSizes(longest_tok=48, slots=3, chunk_tok=16)
IDS = tuple(np.random.default_rng(16).integers(VOCAB, size=40).tolist())
CONTEXT, REST = IDS[:23], IDS[23:31]


@pytest.fixture(scope="module")
def keeping():
    return KeepEngine(NET, [FULL, *SMALL, *WIDE], SIZES, byte_text)


@pytest.fixture(scope="module")
def plain():
    """An engine that evicts nothing: it scores a text as a prompt."""
    return KeepEngine(NET, [FULL], SIZES, byte_text)


def unseen(engine, count):
    """The same engine, with another number of tokens read after the cut."""
    other = copy.copy(engine)
    other.sizes = dataclasses.replace(engine.sizes, unseen_tok=count)
    return other


def answers(engine, *jobs):
    found = [None] * len(jobs)
    engine.run(jobs, found.__setitem__)
    return found


def oracle(policy, context, continuation, after=1) -> np.ndarray:
    """Nats of each token of the continuation, by rows and without an engine."""
    keep, row = Keep(**policy.fields), [*context, *continuation]
    return log_likelihoods(NET, [row], len(context) - after, keep=keep)[0, after:]


def exact(context, continuation) -> np.ndarray:
    """The same in a forward pass that sees everything."""
    row = [*context, *continuation]
    nats_TV = np.asarray(jax.nn.log_softmax(logits(row, NET)), np.float64)
    return np.array([nats_TV[t - 1, row[t]] for t in range(len(context), len(row))])


@pytest.mark.parametrize("policy", SMALL, ids=lambda policy: policy.scorer)
@pytest.mark.parametrize("after", [1, 3])
def test_a_likelihood_under_a_budget_is_that_of_a_row_cut_and_read_token_by_token(keeping, policy, after):
    [score] = answers(unseen(keeping, after), ScoreJob(policy, CONTEXT, REST))
    assert score.nats == pytest.approx(oracle(policy, CONTEXT, REST, after).sum(), abs=2e-4)
    assert abs(score.nats - exact(CONTEXT, REST).sum()) > 1e-3, "the control: a budget changes it"


def test_a_budget_of_the_whole_text_gives_the_likelihoods_of_no_budget(keeping, plain):
    want = exact(CONTEXT, REST).sum()
    jobs = [ScoreJob(policy, CONTEXT, REST) for policy in (FULL, *WIDE)]
    for score in [*answers(keeping, *jobs), *answers(plain, jobs[0])]:
        assert score.nats == pytest.approx(want, abs=2e-4)


def test_the_first_token_depends_on_the_budget_only_if_the_context_ends_after_the_cut(keeping):
    first = [ScoreJob(policy, CONTEXT, REST[:1]) for policy in (FULL, SMALL[0])]
    full, cut = answers(unseen(keeping, 0), *first)
    assert full.nats == pytest.approx(cut.nats, abs=1e-5)
    full, cut = answers(keeping, *first)
    assert abs(full.nats - cut.nats) > 1e-3


@pytest.mark.parametrize("policy", [FULL, *SMALL[:2]], ids=lambda policy: policy.scorer)
def test_a_continuation_is_greedy_where_the_same_budget_would_write_it(keeping, policy):
    [written] = answers(keeping, WriteJob(policy, CONTEXT, 5))
    keep = None if policy.fields is None else Keep(**policy.fields)
    [ids] = generate(NET, [CONTEXT[:-1]], 5, keep=keep, then=[CONTEXT[-1:]])
    assert written == byte_text(ids)
    other = (*ids[:4], (ids[4] + 1) % VOCAB)
    said = answers(keeping, ScoreJob(policy, CONTEXT, tuple(ids)), ScoreJob(policy, CONTEXT, other))
    assert [score.greedy for score in said] == [True, False]


def test_scores_without_eviction_know_what_is_greedy_too(plain):
    [ids] = generate(NET, [CONTEXT], 4)
    other = (*ids[:3], (ids[3] + 1) % VOCAB)
    said = answers(plain, ScoreJob(FULL, CONTEXT, tuple(ids)), ScoreJob(FULL, CONTEXT, other))
    assert [score.greedy for score in said] == [True, False]


def test_an_answer_ends_before_the_first_of_its_stop_texts_and_never_at_one_of_its_context(keeping, plain):
    [ids] = generate(NET, [CONTEXT], 12)
    text = byte_text(ids)
    stop, whole = text[5:7], text[: text.index(text[5:7])]
    across = chr(CONTEXT[-1]) + text[0]  # half of it is in the context
    job = WriteJob(FULL, CONTEXT, 12, until=(stop, across))
    for engine in (keeping, plain):
        assert answers(engine, job, WriteJob(FULL, CONTEXT, 12)) == [whole, text]


def test_a_share_is_of_the_context_and_of_a_window_of_a_whole_text_of_all_of_it(keeping):
    share = dataclasses.replace(SMALL[0], budget=0.5)
    engine = KeepEngine.__new__(KeepEngine)
    engine.sizes, engine._keeps, engine._slab_tok = SIZES, {share: Keep(**share.fields)}, 24
    assert engine.budget_tok(ScoreJob(share, CONTEXT, REST)) == 11  # of 22: one is read after the cut
    assert engine.budget_tok(ScoreJob(share, CONTEXT[:1], REST, rolling=True)) == 4
    assert engine.budget_tok(ScoreJob(share, CONTEXT[:2], REST)) == 2, "the sink, and one key more"


def test_a_window_of_a_whole_text_is_read_token_by_token(keeping):
    job = ScoreJob(SMALL[1], IDS[:1], IDS[1:30], rolling=True)
    [score] = answers(keeping, job)
    keep = Keep(**(SMALL[1].fields | {"budget": BUDGET}))
    [nats] = log_likelihoods(NET, [IDS[:30]], 1, keep=keep)
    assert score.nats == pytest.approx(nats.sum(), abs=2e-3)


def test_many_jobs_at_once_are_answered_as_one_by_one(keeping):
    contexts = [IDS[: 5 + 3 * i] for i in range(6)]
    jobs = [ScoreJob(policy, c, REST[: 1 + i % 4]) for i, c in enumerate(contexts) for policy in SMALL[:3]]
    together = answers(keeping, *jobs)
    for job, score in zip(jobs, together):
        [alone] = answers(keeping, job)
        assert alone.nats == pytest.approx(score.nats, abs=1e-5)
    assert not keeping.engine.live


def test_what_cannot_be_asked_is_refused(keeping):
    with pytest.raises(ValueError, match="differ in scorer and budget"):
        KeepEngine(NET, [SMALL[0], KeepPolicy("tova", 6, (("sinks", 0),))], SIZES, byte_text)
    with pytest.raises(ValueError, match="0 and 3 tokens"):
        ScoreJob(FULL, (), (1, 2, 3))
    with pytest.raises(ValueError, match="serves at most"):
        answers(keeping, ScoreJob(FULL, IDS, IDS[:10]))
    with pytest.raises(ValueError, match="unseen_tok is -1"):
        HarnessSizes(unseen_tok=-1)
