"""Hand-checked traces of an engine whose prefill yields no token and whose memory is reserved."""

import pytest

from serving import fair
from serving.fair.ledger import SCALE
from serving.request import RequestInfo


class Bench:
    """Admission before every decode step, room for `memory_tok` prompt and final output tokens."""

    def __init__(self, policy, memory_tok, extend=lambda request: request.prompt_tok):
        self.policy, self.memory_tok, self.extend = policy, memory_tok, extend
        self.left, self.requests, self.seq = {}, {}, 0

    def arrive(self, id, prompt_tok, output_tok):
        request = RequestInfo(id, id[0], self.seq, prompt_tok, output_tok)
        self.seq += 1
        assert self.policy.arrive(request, 0.0)
        self.requests[id] = request

    def admit(self):
        """Ids admitted now, the counters after each, and the head that did not fit."""
        done = []
        while (request := self.policy.pick(0.0)) is not None:
            used = sum(self.requests[i].prompt_tok + self.requests[i].max_output_tok for i in self.left)
            if used + request.prompt_tok + request.max_output_tok > self.memory_tok:
                return done, request.id
            extend = self.extend(request)
            self.policy.admit(request, extend_tok=extend, hit_tok=request.prompt_tok - extend)
            self.left[request.id] = request.max_output_tok
            done.append((request.id, self.counters()[request.client]))
        return done, None

    def decode(self):
        self.policy.decoded(dict.fromkeys(self.left, 1))
        self.left = {i: n - 1 for i, n in self.left.items()}
        finished = [i for i, n in self.left.items() if not n]
        for id in finished:
            self.policy.finish(id)
            del self.left[id]
        return finished

    def counters(self):
        return {a.client: a.counter / SCALE for a in self.policy.ledger}


def test_G1_vtc_serves_the_least_served_and_lifts_newcomers_to_the_last_that_left():
    bench = Bench(fair.make("vtc"), memory_tok=20)
    for id, prompt, output in (("A1", 2, 3), ("A2", 2, 3), ("A3", 2, 3), ("B1", 4, 2), ("B2", 4, 2)):
        bench.arrive(id, prompt, output)
    story = []
    for _ in range(6):
        admitted, blocked = bench.admit()
        finished = bench.decode()
        story.append((admitted, blocked, tuple(bench.counters().values()), finished))
    assert story == [
        ([("A1", 2), ("B1", 4), ("A2", 4)], "B2", (8, 6), []),
        ([], "B2", (12, 8), ["B1"]),
        ([("B2", 12)], "A3", (16, 14), ["A1", "A2"]),
        ([("A3", 18)], None, (20, 16), ["B2"]),
        ([], None, (22, 16), []),
        ([], None, (24, 16), ["A3"]),
    ]
    bench.arrive("C1", 1, 1)
    assert bench.counters()["C"] == 24
    bench.arrive("B3", 1, 1)
    assert bench.counters()["B"] == 24


@pytest.mark.parametrize("lift", ["no_idle", "none"])
def test_G1_without_the_idle_lift_a_newcomer_starts_at_zero(lift):
    bench = Bench(fair.make("vtc", lift=lift), memory_tok=20)
    bench.arrive("A1", 2, 3)
    bench.admit()
    for _ in range(3):
        bench.decode()
    bench.arrive("C1", 1, 1)
    assert bench.counters() == {"A": 8, "C": 0}


def credits(policy):
    return tuple(policy.credit(client) / SCALE for client in "AB")


def test_G2_dlpm_admits_by_locality_until_the_gate_closes():
    extend = {"A1": 4, "A2": 4, "A3": 4, "B1": 12, "B2": 12}
    match = {id: 100 if id[0] == "A" else 0 for id in extend}
    policy = fair.make("dlpm", match=lambda request: match[request.id], quantum_tok=10)
    bench = Bench(policy, 10_000, extend=lambda request: extend[request.id])
    for id in extend:
        bench.arrive(id, match[id] + extend[id], 2 if id[0] == "A" else 1)
    seen = []
    while (request := policy.pick(0.0)) is not None:
        policy.admit(request, extend_tok=extend[request.id], hit_tok=match[request.id])
        bench.left[request.id] = request.max_output_tok
        seen.append((request.id, *credits(policy)))
    assert seen == [("A1", 6, 10), ("A2", 2, 10), ("A3", -2, 10), ("B1", -2, -2), ("B2", 8, -4)]
    assert policy.refills == policy.rounds == 2
    assert bench.decode() == ["B1", "B2"]
    assert credits(policy) == (2, -8)
    assert bench.decode() == ["A1", "A2", "A3"]
    assert credits(policy) == (-4, -8)
    assert {c: w / SCALE for c, w in policy.served().items()} == {"A": 24, "B": 28}


def test_G3_a_refill_is_given_once_a_client_not_once_a_request():
    policy = fair.make("dlpm", match=lambda request: 0, quantum_tok=4)
    bench = Bench(policy, 10_000)
    for id in ("A1", "A2", "B1"):
        bench.arrive(id, 3, 1)
    order = []
    for _ in range(3):
        request = policy.pick(0.0)
        policy.admit(request, extend_tok=3, hit_tok=0)
        order.append((request.id, policy.credit(request.client) / SCALE))
    assert order == [("A1", 1), ("A2", -2), ("B1", 1)]


@pytest.mark.parametrize(("output_tok", "net"), [(7, 19), (13, 31)])
def test_G5_a_prediction_is_corrected_at_the_finish(output_tok, net):
    policy = fair.make("vtc_predict", predictor="oracle")
    policy.arrive(RequestInfo("r", "A", 0, 5, 64, 10), 0.0)
    policy.admit(policy.pick(0.0), extend_tok=5, hit_tok=0)
    assert policy.served() == {"A": 25 * SCALE}
    for _ in range(7):
        policy.decoded({"r": 1})
    assert policy.served() == {"A": 25 * SCALE}
    for _ in range(output_tok - 7):
        policy.decoded({"r": 1})
    policy.finish("r")
    assert policy.served() == {"A": net * SCALE}


def test_G5_a_cancel_gives_the_rest_of_the_prediction_back_once():
    policy = fair.make("vtc_predict", predictor="oracle")
    policy.arrive(RequestInfo("r", "A", 0, 5, 64, 10), 0.0)
    policy.admit(policy.pick(0.0), extend_tok=5, hit_tok=0)
    policy.decoded({"r": 4})
    policy.cancel("r")
    assert policy.served() == {"A": 13 * SCALE}
    with pytest.raises(ValueError, match="not live"):
        policy.cancel("r")
