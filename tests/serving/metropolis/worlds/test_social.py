"""The network: lock-step if there is one version of every post, local waiting if there are many."""

import pytest

from serving.metropolis import InMemoryStore, Simulation, in_place, multi_version
from serving.metropolis.runtime.clock import run_virtual
from serving.metropolis.worlds.social import NetworkConfig, Poster, SocialNetwork, small_world_graph
from tests.serving.metropolis.example_worlds import RandomLatencyModel

SMALL = NetworkConfig(nodes=40, steps=20, longest=8)


def talk(mode, rule=in_place):
    world, poster = SocialNetwork(SMALL), Poster(SMALL)
    agents = {world.name(i): poster for i in range(SMALL.nodes)}
    store = InMemoryStore()
    sim = Simulation(
        world, agents, RandomLatencyModel(even=True), mode=mode, rule=rule, store=store, verify_views=True
    )
    result = run_virtual(sim.run(SMALL.steps))
    posts = {i: sorted(map(tuple, entries)) for i, entries in world.posts.items()}
    return posts, result.stats


def test_by_version_everyone_reads_what_lock_step_shows_and_waits_for_contacts_only():
    want, lockstep = talk("parallel_sync")
    got, stats = talk("metropolis", multi_version)
    assert got == want
    assert stats.elapsed_s < lockstep.elapsed_s
    assert max(stats.leads) > 1


def test_with_one_version_a_connected_graph_is_lock_step():
    want, lockstep = talk("parallel_sync")
    got, stats = talk("metropolis", in_place)
    assert got == want
    assert stats.clusters == lockstep.clusters


def test_a_graph_is_symmetric_and_drawn_from_its_seed():
    space = small_world_graph(SMALL)
    assert all(i in space.neighbours[j] for i in space.neighbours for j in space.neighbours[i])
    assert small_world_graph(SMALL) == space
    with pytest.raises(ValueError, match="even and between"):
        small_world_graph(NetworkConfig(nodes=3, contacts=4))
