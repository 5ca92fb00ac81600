"""Rules by hand, the index against brute force, and the dependency graph against its definition."""

import math
import random

import pytest

from serving.metropolis.schedule.dependency_graph import Cluster, DependencyGraph
from serving.metropolis.schedule.rules import (
    Margin,
    Reach,
    blocked,
    earliest_release,
    in_place,
    moves_left,
    multi_version,
)
from serving.metropolis.schedule.schedulers import LockStep, NoDependency, Oracle, make_schedule
from serving.metropolis.schedule.space import Grid, Hops
from tests.serving.metropolis.example_worlds import max_lead, ring_with_chords

TOWN = Reach(4, 1)


# ---- rules --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reach", "couple"), [((4, 1), 5), ((2, 2), 4), ((0, 1), 2), ((1, 3), 6), ((4, 1, 3), 7), ((1, 0, 0), 1)]
)
def test_equal_agents_couple_at_the_larger_of_sight_and_writing_plus_writing(reach, couple):
    assert in_place(Reach(*reach), Reach(*reach)) == Margin(couple, couple, couple)


def test_margins_are_symmetric_in_coupling_and_versions_never_widen_them():
    draw = random.Random(0)
    for _ in range(200):
        a, b = (Reach(draw.randint(0, 6), (v := draw.randint(0, 3)), v + draw.randint(0, 2)) for _ in "ab")
        assert in_place(a, b).couple == in_place(b, a).couple
        assert multi_version(a, b).couple <= in_place(a, b).couple
        assert multi_version(a, b).block <= in_place(a, b).block


def test_the_paper_rule_in_numbers():
    """Perception 4, speed 1: three steps behind blocks up to 4 + (3 + 1) * 1 = 8, equality included."""
    margin = in_place(TOWN, TOWN)
    assert blocked(8, margin, moves_left(3, 0, 0), 1)
    assert not blocked(9, margin, moves_left(3, 0, 0), 1)
    assert not blocked(6, margin, moves_left(3, 0, still_until=3), 1)
    assert blocked(6, margin, moves_left(3, 0, still_until=2), 1)


def test_earliest_release_is_the_first_step_that_can_release():
    """Compares with brute force over all movements of B on a line."""
    for gap in range(1, 9):
        for distance in range(12):
            margin = in_place(TOWN, TOWN)
            if not blocked(distance, margin, gap, 1):
                continue
            wake = earliest_release(distance, margin, gap, 0, 1)
            frees = [
                k
                for k in range(1, gap + 1)
                if k == gap or not blocked(distance + k, margin, moves_left(gap, k, 0), 1)
            ]
            assert wake == frees[0]


def test_an_agent_that_cannot_move_blocks_until_it_arrives():
    margin = in_place(Reach(1, 0), Reach(1, 0))
    assert earliest_release(1, margin, step=7, from_step=2, move_b=0) == 7
    assert max_lead(2, margin, 0) == math.inf


def test_a_reach_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="write reach 1 is below move 2"):
        Reach(4, 2, 1)
    with pytest.raises(ValueError, match="must not be negative"):
        Reach(-2, 1)


# ---- spaces -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", ["chebyshev", "manhattan", "euclidean", "hops"])
def test_the_index_finds_what_brute_force_finds(metric):
    draw = random.Random(metric)
    space = ring_with_chords(60, 3) if metric == "hops" else Grid(metric)
    index = space.index(7)

    def spot():
        return draw.randrange(60) if metric == "hops" else (draw.randint(-90, 200), draw.randint(-40, 90))

    where = {agent: (spot(), draw.randint(0, 30)) for agent in range(40)}
    for agent, (pos, step) in where.items():
        index.put(agent, pos, step)
    for turn in range(400):
        agent = draw.choice(list(where))
        if turn % 50 == 49 and len(where) > 5:
            index.remove(agent)
            del where[agent]
            continue
        where[agent] = (spot() if turn % 3 else where[agent][0], where[agent][1] + draw.randint(0, 2))
        index.put(agent, *where[agent])
        here, radius = spot(), draw.choice([0, 1, 5, 20, 1000])
        near = {x for x, (pos, _) in where.items() if space.distance(here, pos) <= radius}
        assert near <= set(index.near(here, radius))
        step, threshold, move = draw.randint(0, 35), draw.choice([0, 3, 8]), draw.choice([0, 1, 2])

        def blocks(x, here=here, step=step, threshold=threshold, move=move):
            pos, late = where[x]
            return late < step and space.distance(here, pos) <= threshold + (step - late) * move

        found = index.behind(here, step, threshold, move, blocks)
        truth = {x for x in where if blocks(x)}
        assert found in truth if truth else found is None


def test_a_directed_graph_is_refused():
    with pytest.raises(ValueError, match="no way back"):
        Hops({1: (2,), 2: ()})


def test_places_without_a_path_are_infinitely_far():
    assert Hops({1: (), 2: ()}).distance(1, 2) == math.inf


# ---- the graph ----------------------------------------------------------------------------------------
def start(*places, until=9, reach=TOWN, **options):
    graph = DependencyGraph(Grid(), until=until, **options)
    return graph, graph.start([(pos, 0, reach, 0) for pos in places])


def blocked_by(graph, agent):
    """The agent that a waiting agent's component watches, or None."""
    component = graph._component[agent]
    if component is None:
        return None
    return next((graph.watching[x] for x in component.unchecked if graph.watching[x] >= 0), None)


def test_agents_within_reach_start_as_one_cluster():
    _, ready = start((0, 0), (5, 0), (10, 0), (16, 0))
    assert ready == [Cluster(0, (0, 1, 2)), Cluster(0, (3,))]


def test_a_leader_waits_for_an_agent_it_could_meet_until_that_one_has_advanced():
    graph, ready = start((0, 0), (7, 0))
    assert ready == [Cluster(0, (0,)), Cluster(0, (1,))]
    assert graph.commit([1], [(7, 0)]) == [Cluster(1, (1,))]  # 7 > 5 + 1
    assert graph.commit([1], [(7, 0)]) == []  # 7 = 5 + 2: equality blocks
    assert blocked_by(graph, 1) == 0
    assert graph.commit([0], [(0, 0)]) == [Cluster(1, (0,)), Cluster(2, (1,))]
    assert blocked_by(graph, 1) is None


def test_one_blocked_member_holds_its_whole_component():
    graph, _ = start((0, 0), (7, 0), (12, 0))
    graph.commit([1, 2], [(6, 0), (11, 0)])
    assert graph.commit([0], [(0, 0)]) == [Cluster(1, (0,)), Cluster(1, (1, 2))] or blocked_by(graph, 2) == 0


def test_every_state_the_graph_reaches_obeys_the_definition():
    """Random walks and random finishing orders; ready clusters are exactly the free components."""
    for seed in range(25):
        draw = random.Random(seed)
        reach = draw.choice([TOWN, Reach(1, 1), Reach(2, 2)])
        places = [(draw.randrange(30), draw.randrange(30)) for _ in range(10)]
        graph, ready = start(*places, until=12, reach=reach)
        running = list(ready)
        while running:
            cluster = running.pop(draw.randrange(len(running)))
            moves = [
                (graph.pos[x][0] + draw.randint(-1, 1) * int(reach.move), graph.pos[x][1])
                for x in cluster.members
            ]
            running += graph.commit(cluster.members, moves)
            busy = {x for c in running for x in c.members}
            assert busy == {x for c in _free_components(graph, reach) for x in c}
        assert graph.step == [12] * 10


def _free_components(graph, reach):
    """Section 2.2 by brute force: components of equal steps without a blocked member."""
    margin, n, distance = in_place(reach, reach), len(graph.step), graph.space.distance
    left, found = {x for x in range(n) if graph.step[x] < graph.until}, []
    while left:
        group, edge = set(), [left.pop()]
        while edge:
            x = edge.pop()
            group.add(x)
            near = {
                y
                for y in left
                if graph.step[y] == graph.step[x] and distance(graph.pos[x], graph.pos[y]) <= margin.couple
            }
            left -= near
            edge += near
        if not any(
            graph.step[b] < graph.step[a]
            and blocked(
                distance(graph.pos[a], graph.pos[b]), margin, graph.step[a] - graph.step[b], reach.move
            )
            for a in group
            for b in range(n)
        ):
            found.append(group)
    return found


def test_a_waiting_agent_is_checked_again_only_when_its_witness_may_stop_blocking():
    """Eight steps behind and close by: most commits of the witness cause no search."""
    graph, _ = start((0, 0), (40, 0), until=99)
    while (ready := graph.commit([1], [(40, 0)])) and graph.step[1] < 99:
        assert ready == [Cluster(graph.step[1], (1,))]
    lead, before = graph.step[1], graph.blocker_searches
    for _ in range(lead):
        if graph.commit([0], [(0, 0)])[-1].members == (1,):
            break
    assert graph.blocker_searches - before <= math.log2(lead) + graph.step[0] + 1


def test_agents_wait_at_a_barrier_for_the_last_one():
    graph, _ = start((0, 0), (90, 0), barriers={2})
    assert graph.commit([0], [(0, 0)]) == [Cluster(1, (0,))]
    assert graph.commit([0], [(0, 0)]) == []
    assert graph.commit([1], [(90, 0)]) == [Cluster(1, (1,))]
    assert graph.commit([1], [(90, 0)]) == [Cluster(2, (0, 1))]


def test_agents_must_be_numbered_in_order():
    graph, _ = start((0, 0))
    with pytest.raises(ValueError, match="numbered in order"):
        graph._add(5, (0, 0), 0, TOWN)


# ---- the other modes ----------------------------------------------------------------------------------
def test_lock_step_refuses_agents_at_different_steps():
    with pytest.raises(ValueError, match="steps 1 to 2"):
        LockStep(9).start([((0, 0), 1, TOWN, 0), ((0, 0), 2, TOWN, 0)])


def test_the_oracle_meets_before_and_after_a_sighting():
    oracle = Oracle(4, {(0, 1): [1]})
    agents = [((0, 0), 0, TOWN, 0), ((0, 0), 0, TOWN, 0)]
    assert oracle.start(agents) == [Cluster(0, (0,)), Cluster(0, (1,))]
    assert oracle.commit([0], [None]) == []  # waits for 1 to have 1 step: they see each other at 1
    assert oracle._waiters == {(1, 1): [0]}
    assert oracle.commit([1], [None]) == [Cluster(1, (1,)), Cluster(1, (0,))]
    assert oracle.commit([1], [None]) == []  # and again after it
    assert oracle.commit([0], [None]) == [Cluster(2, (0,)), Cluster(2, (1,))]


def test_no_dependency_offers_every_step_at_once():
    every = NoDependency(3).start([((0, 0), 0, TOWN, 0)] * 2)
    assert len(every) == 6


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'fast' is not one of single_thread"):
        make_schedule("fast", Grid(), until=1)
