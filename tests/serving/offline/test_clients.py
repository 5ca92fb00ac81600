"""Workloads: the same for every policy, tied to progress, cut from documents that are long enough."""

import pytest

from serving.offline.clients import Arrivals, ClientProfile, Workload

DOCUMENTS = [list(range(100)), list(range(100, 160))]


def workload() -> Workload:
    return Workload(
        clients=[
            ClientProfile(name="a", size=3, prompt_tok=(8, 20)),
            ClientProfile(name="b", bursts=3, size=2, every=5, prompt_tok=(12, 20), shared_tok=10),
        ]
    )


def test_the_same_seed_gives_the_same_requests():
    one, two = (Arrivals(workload(), DOCUMENTS).due(100, idle=False) for _ in range(2))
    assert one == two
    assert len({r.id for r in one}) == workload().requests == 9


def test_bursts_come_with_progress_and_an_idle_server_gets_the_next_at_once():
    arrivals = Arrivals(workload(), DOCUMENTS)
    assert len(arrivals.due(0, idle=True)) == 5, "both clients start"
    assert arrivals.due(4, idle=False) == []
    assert len(arrivals.due(5, idle=False)) == 2
    assert len(arrivals.due(5, idle=True)) == 2, "nothing runs, so progress would never come"
    assert len(arrivals) == 0


def test_a_client_that_shares_begins_every_prompt_alike():
    shared = [r.prompt_ids for r in Arrivals(workload(), DOCUMENTS).due(99, idle=False) if r.client == "b"]
    assert len({tuple(p[:10]) for p in shared}) == 1
    assert len({tuple(p) for p in shared}) > 1


def test_documents_too_short_for_a_prompt_are_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"needs \d+ tokens in a row; the longest .* has 5"):
        Arrivals(workload(), [[1] * 5])


def test_a_client_cannot_share_more_than_its_shortest_prompt():
    with pytest.raises(ValueError, match="shares 20 tokens; prompts start at 12"):
        ClientProfile(name="x", prompt_tok=(12, 20), shared_tok=20).check()
