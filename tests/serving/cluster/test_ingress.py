"""Whatever happens to workers and streams, each client gets its tokens once, and pays once."""

import pytest

from serving import fair
from serving.cluster.ingress import Ingress
from serving.fair.ledger import SCALE
from serving.fair.routers.d2lpm import D2lpm
from serving.request import Delta, Request, Sampling
from tests.serving.cluster.fake_cluster import FakeCluster

ROUTERS = ["round_robin", "least_load", "sticky", "preble", "d2lpm"]


def play(router, seed, events, every=50, **options):
    cluster = FakeCluster(router, seed, **options)
    for i in range(events):
        cluster.event()
        if i % every == 0:
            cluster.check_loads()
    cluster.finish()
    cluster.check_answers()
    cluster.check_ledgers()
    return cluster


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("seed", range(2))
def test_random_events_lose_nothing_and_the_ledgers_agree_with_the_history(router, seed):
    cluster = play(router, seed, 1000)
    counts = cluster.ingress.counts
    assert min(counts.again, counts.dropped, counts.gaps) > 0, "the troubles did happen"
    assert {output.finish_reason for output in cluster.outputs.values()} == {"length", "cancel", "deadline"}


@pytest.mark.long
@pytest.mark.parametrize("router", ROUTERS)
def test_random_events_in_200_logs_of_1000(router):
    for seed in range(200):
        play(router, 1000 + seed, 1000)


def test_an_output_ends_with_error_after_its_last_try():
    cluster = play("d2lpm", 5, 3000, max_tries=2)
    ended = [o.finish_reason for o in cluster.outputs.values()]
    assert ended.count("error") == cluster.ingress.counts.failed > 0


def up(router="d2lpm", workers=2, **options):
    ingress = Ingress(fair.make(router), **options)
    for _ in range(workers):
        ingress.join(max_live=1)
    return ingress


def ask(ingress, id, client="a", max_tokens=4, prompt=5, **more):
    sampling = Sampling(max_tokens=max_tokens)
    ingress.submit(
        Request(client=client, id=id, prompt_ids=[1] * prompt, sampling=sampling, **more), now_s=0.0
    )


def tell(ingress, send, number, ids):
    delta = Delta(send.request.id, send.request.client, list(ids))
    ingress.reported(send.request.id, send.attempt, number, delta, now_s=1.0)


def test_what_was_streamed_and_lost_is_paid_once_and_what_was_not_computed_not_at_all():
    ingress = up()
    ask(ingress, "x", prompt=10)
    (first,) = ingress.dispatch(0.0)
    assert ingress.router.billed == {"a": (10 + 2 * 4) * SCALE}, "at dispatch, with the whole output"
    ingress.admitted("x", first.attempt, extend_tok=6, hit_tok=4, now_s=0.0)
    tell(ingress, first, 0, [7, 8])
    assert ingress.router.billed == {"a": (6 + 2 * 4) * SCALE}
    ingress.lost(first.worker, 1.0)
    assert ingress.router.billed == {"a": 2 * 2 * SCALE}
    (second,) = ingress.dispatch(1.0)
    assert second.request.resume_ids == (7, 8)
    assert second.worker != first.worker
    tell(ingress, first, 1, [9])
    assert ingress.live["x"].ids == [7, 8], "the late delta is dropped"
    assert ingress.counts.dropped == 1


def test_the_queue_is_shared_between_clients_while_no_worker_has_room():
    ingress = up(workers=1)
    for i in range(4):
        ask(ingress, f"a{i}", "a")
    ask(ingress, "b0", "b")
    assert [send.request.id for send in ingress.dispatch(0.0)] == ["a0"]
    ingress.cancel("a0", 0.0)
    assert ingress.stops[0].name == "a0"
    order = []
    for _ in range(4):
        (send,) = ingress.dispatch(0.0)
        order.append(send.request.id)
        ingress.admitted(send.request.id, send.attempt, extend_tok=5, hit_tok=0, now_s=0.0)
        ingress.cancel(send.request.id, 0.0)
    assert order.index("b0") <= 1, "not behind all of the other client's"


def test_a_lost_request_keeps_its_place():
    ingress = up(workers=1)
    for id in ("first", "second"):
        ask(ingress, id)
    (send,) = ingress.dispatch(0.0)
    ingress.lost(send.worker, 1.0)
    assert ingress.dispatch(1.0) == [], "no worker is up"
    ingress.join(max_live=1)
    assert [s.request.id for s in ingress.dispatch(1.0)] == ["first"]


def test_a_draining_worker_keeps_what_it_runs_and_gets_no_more():
    ingress = up(workers=1)
    ask(ingress, "x")
    (send,) = ingress.dispatch(0.0)
    ingress.drain(send.worker)
    ask(ingress, "y")
    assert ingress.dispatch(0.0) == []
    assert ingress.drained == []
    ingress.cancel("x", 0.0)
    assert ingress.drained == [send.worker]


def test_bad_input_is_refused():
    ingress = up()
    ask(ingress, "x")
    with pytest.raises(ValueError, match="needs an id that is not live"):
        ask(ingress, "x")
    with pytest.raises(ValueError, match="nothing to resume"):
        ask(ingress, "y", resume_ids=[1])
    for strange in (-1, 2**32):
        with pytest.raises(ValueError, match="names a token that no vocabulary has"):
            ingress.submit(Request(client="a", id="z", prompt_ids=[1, strange]), now_s=0.0)
    assert list(ingress.live) == ["x"], "nothing half-taken stays"
    with pytest.raises(ValueError, match="max_tries is 0"):
        Ingress(fair.make("d2lpm"), max_tries=0)
    with pytest.raises(KeyError):
        ingress.lost(99, 0.0)


def _any_attempt(ingress, name, attempt):
    return ingress.live.get(name)


def _keeps_the_prompt(router, sent, output_tok):
    D2lpm._on_end(router, sent, output_tok)


@pytest.mark.parametrize(
    ("of", "method", "wrong"),
    [(Ingress, "_current", _any_attempt), (D2lpm, "_on_lost", _keeps_the_prompt)],
    ids=["a late report counts", "a lost prompt is paid for"],
)
def test_the_twin_notices_a_wrong_ingress(monkeypatch, of, method, wrong):
    monkeypatch.setattr(of, method, wrong)
    with pytest.raises((AssertionError, KeyError)):
        play("d2lpm", 0, 1000)
