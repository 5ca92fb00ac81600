"""Negative controls of the oracle: an engine that did these things would be noticed."""

import numpy as np
import pytest

from serving.kvcache.manager import KVCacheManager
from tests.serving.engine.dense_keep import DenseKeep
from tests.serving.engine.keep_cases import Settings, _keep, kept_engine, mixed, serve
from tests.serving.tiny import workload


@pytest.mark.parametrize("broken", ["evict first", "future", "longer"])
def test_a_defect_of_the_score_or_its_time_gives_other_keys(broken):
    eng = kept_engine()
    differ = 0
    for request in workload(seed=0, n=6):
        slab = eng.slabs.plan(request)
        if not slab.history:
            continue
        # A step changes the sums of a whole prompt little; the scores of one query change with every step.
        keep = _keep(Settings(eng.config.keep), "tova" if broken == "evict first" else "h2o")
        n = request.sampling.max_tokens
        right, wrong = (
            DenseKeep(eng.test_model, keep, slab.cut, request.prompt_ids, n, broken=b) for b in (None, broken)
        )
        differ += right.kept != wrong.kept
    assert differ > 0


def test_of_equal_scores_the_lower_position_stays():
    from mixattn.keep import Keep
    from pallas_kernels import heavy_hitter
    from pallas_kernels.heavy_hitter import Slab, SlabLimits

    position = np.array([[[3, 0, 7, 5]]], np.int32)
    slab = Slab(np.zeros(0), np.zeros(0), np.zeros((1, 1, 4), np.float32), position, SlabLimits(2, 1))
    gone = set(position.ravel()) - set(np.asarray(heavy_hitter.evict(slab).position_BKR).ravel())
    assert gone == {5}, "the highest of the equal ones that are not recent"
    assert Keep(budget=3).promotion == "compete"


def test_sharing_pages_of_a_settled_row_is_noticed(monkeypatch):
    computed = KVCacheManager.computed

    def shares(self, kv, tokens, computed_tok, *, share):
        was, kv.settled = kv.settled, False
        try:
            computed(self, kv, tokens, computed_tok, share=True)
        finally:
            kv.settled = was

    eng = kept_engine()
    serve(eng, mixed(n=3))
    monkeypatch.setattr(KVCacheManager, "computed", shares)
    with pytest.raises((AssertionError, ValueError, IndexError)):
        serve(eng, mixed(n=3))


def test_a_hit_without_its_snapshot_is_noticed(monkeypatch):
    """Scores of the prefix missing, as if it had been computed by nobody."""
    import tests.serving.engine.keep_cases as cases
    from serving.kvcache import manager

    eng = kept_engine()
    monkeypatch.setattr(manager, "_scored", lambda plan: False)

    def thrice():
        for _ in range(3):
            cases.serve(eng, workload(seed=0, n=8))

    with pytest.raises(AssertionError):
        thrice()


def test_a_stale_slab_is_noticed(monkeypatch):
    """A program that does not write the slab leaves the poison of its former owner."""
    from serving.engine import slab_runner

    eng = kept_engine()
    serve(eng, mixed(n=4))
    monkeypatch.setattr(type(eng.programs), "settle", lambda self, state, batch: state)
    assert slab_runner.SlabRunner is not None
    with pytest.raises(AssertionError):
        serve(eng, mixed(n=4))
