"""Routers: placement, charges, and worker failures."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import fair
from serving.fair.ledger import SCALE
from serving.fair.routers.prefix_map import PrefixMap
from serving.request import RequestInfo

ROUTERS = ["round_robin", "least_load", "sticky", "preble", "d2lpm"]


def up(name, workers=3, **options):
    router = fair.make(name, **options)
    for worker in range(workers):
        router.join(worker)
    return router


def request(i, client="a", prompt=10, output=5):
    return RequestInfo(f"r{i}", client, i, prompt, output, output)


def hold(router, worker, key, tokens, load):
    """Makes the router believe that a worker holds a prefix and has so many requests."""
    router.prefix_map.insert([(key, tokens)], worker)
    router.load_of[worker] = load


def test_G4_d2lpm_prefers_the_prefix_then_the_queue_among_workers_with_credit():
    x, y, z = 0, 1, 2
    for credit, chosen in (((1, 1, 1), y), ((0, -3, 1), z)):
        router = up("d2lpm", quantum_tok=10)
        hold(router, x, "doc", 8, load=5)
        hold(router, y, "doc", 8, load=1)
        router.spent, router.refills = {("a", w): -c * SCALE for w, c in enumerate(credit)}, {"a": 0}
        assert router.dispatch(request(0), [("doc", 8), ("own", 2)]) == chosen
    router = up("d2lpm", quantum_tok=10)
    hold(router, x, "doc", 8, load=5)
    hold(router, y, "doc", 8, load=1)
    router.spent, router.refills = {("a", x): 5 * SCALE, ("a", y): 25 * SCALE, ("a", z): 12 * SCALE}, {"a": 0}
    assert router.dispatch(request(0), [("doc", 8), ("own", 2)]) == x, (
        "positive after one round, and holds it"
    )
    assert router.refills == {"a": 1}
    assert router.credit("a", z) == -2 * SCALE


@given(
    seed=st.integers(0, 10**6),
    quantum=st.sampled_from([5, 100]),
    lead=st.sampled_from([None, 0, 3]),
    weight=st.sampled_from([1, 4]),
)
def test_P20_d2lpm_spreads_each_clients_work_over_the_workers(seed, quantum, lead, weight):
    """And with a guard: no worker that gets a request leads by more, and the spread grows by what it cost."""
    rng = random.Random(seed)
    router = up("d2lpm", quantum_tok=quantum, max_lead=lead, weights={"a": weight, "b": 1})
    live, dearest = [], 0
    for i in range(150):
        asked = request(i, rng.choice("ab"), rng.randint(1, 30), rng.randint(1, 20))
        half = asked.prompt_tok // 2
        before = dict(router.load_of)
        worker = router.dispatch(asked, [(f"doc{rng.randrange(3)}", half), (i, asked.prompt_tok - half)])
        assert lead is None or before[worker] <= min(before.values()) + lead
        live.append(asked)
        dearest = max(dearest, asked.prompt_tok + 2 * asked.max_output_tok)
        while live and rng.random() < 0.45:
            done = live.pop(rng.randrange(len(live)))
            router.ended(done.id, done.max_output_tok)
        for client, share in (("a", weight * quantum), ("b", quantum)):
            spent = [router.spent.get((client, w), 0) / SCALE for w in range(3)]
            extra = router.overridden.get(client, 0) / SCALE
            assert lead is not None or not extra
            assert max(spent) - min(spent) <= share + dearest + extra
            assert all(router.credit(client, w) <= share * SCALE for w in range(3))


def test_P20_errata_billing_outputs_at_completion_overshoots_in_a_burst():
    """All requests of a burst are dispatched before any ends: credit says yes to every one of them."""

    def spread(bill):
        router = up("d2lpm", quantum_tok=100, bill=bill)
        hold(router, 0, "doc", 90, load=0)
        for i in range(60):
            router.dispatch(request(i, "a", 91, 400), [("doc", 90), (i, 1)])
        for i in range(60):
            router.ended(f"r{i}", 400)
        spent = [router.spent.get(("a", w), 0) / SCALE for w in range(3)]
        return max(spent) - min(spent)

    one = 91 + 2 * 400
    assert spread("predicted") <= 100 + one
    assert spread("completion") > 5 * (100 + one)


@pytest.mark.parametrize("name", ROUTERS)
@given(seed=st.integers(0, 10**6))
def test_P20_requests_go_to_live_workers_and_lost_ones_are_given_back_once(name, seed):
    rng = random.Random(seed)
    router, alive, live = up(name, 4), {0, 1, 2, 3}, {}
    for i in range(200):
        what = rng.random()
        if what < 0.6 and alive:
            asked = request(i)
            live[asked.id] = (asked, router.dispatch(asked, [(f"d{rng.randrange(4)}", 8), (i, 2)], float(i)))
            assert live[asked.id][1] in alive
        elif what < 0.8 and live:
            id = rng.choice(list(live))
            if rng.random() < 0.5:
                router.admitted(id, extend_tok=2, hit_tok=8)
            router.ended(id, 5)
            del live[id]
        elif what < 0.9 and len(alive) > 1:
            worker = rng.choice(sorted(alive))
            alive.discard(worker)
            lost = {a.id for a in router.leave(worker)}
            assert lost == {id for id, (_, w) in live.items() if w == worker}
            live = {id: entry for id, entry in live.items() if id not in lost}
        elif len(alive) < 4:
            worker = min({0, 1, 2, 3} - alive)
            alive.add(worker)
            router.join(worker)
        assert router.load_of == {w: sum(at == w for _, at in live.values()) for w in alive}


def test_a_cluster_without_workers_says_so():
    router = fair.make("sticky")
    with pytest.raises(ValueError, match="no worker is up"):
        router.dispatch(request(0), [])


def test_sticky_stays_and_round_robin_turns():
    sticky, turning = up("sticky"), up("round_robin")
    assert len({sticky.dispatch(request(i), [("doc", 8), (i, 2)]) for i in range(6)}) == 1
    assert [turning.dispatch(request(i), []) for i in range(4)] == [0, 1, 2, 0]


def test_preble_explores_when_the_prefix_is_short_and_exploits_when_it_is_long():
    router = up("preble")
    first = router.dispatch(request(0, prompt=100), [("doc", 80), (0, 20)])
    assert router.dispatch(request(1, prompt=100), [("doc", 80), (1, 20)]) == first
    assert router.dispatch(request(2, prompt=400), [("doc", 80), (2, 320)]) != first


def test_a_worker_of_twice_the_speed_gets_twice_the_work():
    router = fair.make("d2lpm", quantum_tok=50)
    router.join(0)
    router.join(1, capacity=2.0)
    for i in range(300):
        router.dispatch(request(i), [(i, 10)])
    assert router.spent["a", 1] / router.spent["a", 0] == pytest.approx(2, abs=0.1)


def nodes_of(tree):
    todo, found = list(tree.root.children.values()), []
    while todo:
        node = todo.pop()
        found.append(node)
        todo += node.children.values()
    return found


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), max_size=60))
def test_the_tree_of_routes_is_bounded_and_forgets_leaves_first(routes):
    tree = PrefixMap(max_blocks=5)
    for worker, first, second in routes:
        tree.insert([(first, 4), (second, 4)], worker)
        assert len(tree) == len(nodes_of(tree)) <= 5
        assert set(tree._leaves) == {node for node in nodes_of(tree) if not node.children}
        assert tree.match([(first, 4), (second, 4)])[worker] == 8
    tree.remove_worker(0)
    assert all(0 not in node.workers for node in nodes_of(tree))


def test_of_a_full_tree_the_prompt_goes_that_was_used_longest_ago():
    tree = PrefixMap(max_blocks=4)
    for prompt in ("ab", "ac", "ab", "d"):
        tree.insert([(letter, 1) for letter in prompt], 0)
    tree.insert([("e", 1)], 0)  # now "c" goes, which no prompt has used since the second
    assert sorted(node.key for node in nodes_of(tree)) == ["a", "b", "d", "e"]
    tree.insert([("f", 1)], 0)
    tree.insert([("g", 1)], 0)
    assert sorted(node.key for node in nodes_of(tree)) == ["d", "e", "f", "g"]


def many_share_a_system_prompt(router, clients=400, workers=4):
    """Requests per worker if every client sends one request behind the same 64 tokens, all at once."""
    for i in range(clients):
        router.dispatch(request(i, f"c{i}", 192, 32), [("system", 64), (i, 128)])
    return [router.load_of[w] for w in range(workers)]


def test_clients_that_share_a_system_prompt_do_not_share_one_worker():
    """Each has credit of its own, so without a guard all follow the prefix."""
    assert max(many_share_a_system_prompt(up("d2lpm", 4, max_lead=None, min_share=0))) == 400
    for guard in ({}, {"max_lead": None}, {"min_share": 0}):
        loads = many_share_a_system_prompt(up("d2lpm", 4, **guard))
        assert sum(loads) == 400
        assert max(loads) - min(loads) <= 9


def test_ties_among_equal_workers_rotate():
    for name in ("least_load", "d2lpm", "sticky"):
        router = up(name, 4)
        chosen = []
        for i in range(12):
            chosen.append(router.dispatch(request(i, f"c{i}"), [(i, 10)]))
            router.ended(f"r{i}", 5)
        assert sorted(chosen) == [w for w in range(4) for _ in range(3)], name


def test_routers_forget_clients_that_have_gone():
    router = up("d2lpm", 2, idle_clients=10)
    for i in range(50_000):
        router.dispatch(request(i, f"c{i}"), [(i, 10)])
        router.ended(f"r{i}", 5)
    state = (router.refills, router._idle, router.overridden, router._live_of)
    assert all(len(kept) <= 10 for kept in state)
    assert len(router.spent) <= 20


def test_only_routers_that_share_by_weight_take_weights():
    for name in ROUTERS:
        if name == "d2lpm":
            assert fair.make(name, weights={"a": 2}).weights == {"a": 2}
        else:
            with pytest.raises(ValueError, match="has no option weights"):
                fair.make(name, weights={"a": 2})
    with pytest.raises(ValueError, match="client 'a' has weight 0"):
        fair.make("d2lpm", weights={"a": 0})
