"""What must hold whatever the keys are: ties and huge keys, the past alone, and greedy choice at its best."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mixattn import generate
from mixattn.cache import KeptBy
from mixattn.keep import Keep
from pallas_kernels import heavy_hitter
from pallas_kernels.attention import attention
from tests.mixattn.cache.test_kept import PROMPTS, Driven, model
from tests.mixattn.keep.oracle import Stepped


def tensors(kind, length, K=2, G=3, H=8, seed=0):
    """q of one layer, k and v; "ties": all keys alike, "huge": one key that takes all attention."""
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((1, length, K * G, H)).astype(np.float32)
    k, v = (rng.standard_normal((length, K, H)).astype(np.float32) for _ in range(2))
    if kind == "ties":
        k[:] = 0
    if kind == "huge":
        q[..., 0], k[5, :, 0] = np.abs(q[..., 0]) + 1, 40
    return q, k, v


@pytest.mark.parametrize("kind", ["ties", "huge"])
@pytest.mark.parametrize(("budget", "recent"), [(1, 1), (4, 4), (9, 1)], ids=["one", "no heavy", "heavy"])
@pytest.mark.parametrize("promotion", ["compete", "always"])
def test_equal_and_huge_keys_are_kept_as_float64_keeps_them(kind, budget, recent, promotion):
    T, length = 20, 32
    keep = Keep("h2o", budget=budget, recent=recent, promotion=promotion)
    q, k, v = tensors(kind, length)
    driven = Driven(keep, 1, q.shape[2], T)
    driven.step(q[:, :T], k[:T], v[:T])
    twin = Stepped(keep, *(np.float64(x) for x in (q[:, :T], k[:T], v[:T])), budget)
    for t in range(T, length):
        driven.step(q[:, t : t + 1], k[t : t + 1], v[t : t + 1])
        twin.step(*(np.float64(x) for x in (q[:, t], k[t], v[t])), t)
        assert driven.kept() == [sorted(head) for head in twin.kept], f"step {t}"
        assert all(len(head) == budget for head in driven.kept())
        assert all(set(range(t + 1 - recent, t + 1)) <= set(head) for head in driven.kept())
        if kind == "huge" and budget - recent > 1:
            assert all(5 in head for head in driven.kept())


def test_tokens_to_come_change_no_keep_set():
    """The local statistic of the paper: nothing reads a query later than the current one."""
    keep, length, at = Keep("h2o", budget=8), 30, 24
    kept = []
    for other in (False, True):
        q, k, v = tensors("random", length)
        if other:
            q[:, at:], k[at:], v[at:] = (-9 * x for x in (q[:, at:], k[at:], v[at:]))
        driven, seen = Driven(keep, 1, q.shape[2], 20), []
        driven.step(q[:, :20], k[:20], v[:20])
        for t in range(20, length):
            driven.step(q[:, t : t + 1], k[t : t + 1], v[t : t + 1])
            seen.append(driven.kept())
        kept.append(seen)
    assert kept[0][: at - 20] == kept[1][: at - 20]
    assert kept[0][at - 20 :] != kept[1][at - 20 :], "the control"


def test_a_score_that_sees_the_future_keeps_other_keys():
    """Sums over all queries of a sequence, as in the original's evaluation, beside those of the past."""
    T, at, heavy = 48, 24, 8
    q, k, v = (jnp.asarray(x) for x in tensors("random", T, G=1))
    q, k, v = q, k[None], v[None]

    def sums(upto):
        lse = attention(q[:, :upto], k[:, :upto], v[:, :upto], return_lse=True)[1]
        return np.asarray(heavy_hitter.column_sums(q[:, :upto], k[:, :upto], lse))[0, :, :at]

    local, future = (np.argsort(-sums(upto), axis=-1)[:, :heavy] for upto in (at, T))
    overlap = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(local, future, strict=True)]
    assert 0 < np.mean(overlap) < 1


def test_greedy_choice_is_within_its_bound_of_the_best_set():
    """f(S) = sum of weights x the root of a sum over S: monotone, submodular; 1 - 1/e by Nemhauser."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        n, k = 9, 4
        x_RN, weight_R = rng.random((5, n)) ** 4, rng.random(5)

        def worth(chosen, x_RN=x_RN, weight_R=weight_R):
            return float(weight_R @ np.sqrt(x_RN[:, list(chosen)].sum(axis=1)))

        best = max(worth(chosen) for chosen in itertools.combinations(range(n), k))
        greedy: list[int] = []
        for _ in range(k):
            greedy.append(max(set(range(n)) - set(greedy), key=lambda i: worth([*greedy, i])))
        assert (1 - 1 / np.e) * best <= worth(greedy) <= best + 1e-12


def test_for_a_sum_of_fixed_scores_evicting_the_least_keeps_the_best():
    rng = np.random.default_rng(0)
    score = rng.permutation(40).astype(np.float32)
    slab = heavy_hitter.Slab(
        jnp.zeros(0),
        jnp.zeros(0),
        jnp.asarray(score[None, None, :9]),
        jnp.arange(9)[None, None],
        heavy_hitter.SlabLimits(7, 1),
    )
    for t in range(9, 40):
        slab = heavy_hitter.evict(slab)
        held = np.asarray(slab.position_BKR[0, 0])
        best = sorted(range(t - 1), key=lambda p: -score[p])[:7]
        assert set(held[held >= 0]) == {*best, t - 1}
        place = int(np.argmin(held))
        slab = dataclasses.replace(
            slab,
            score_BKR=slab.score_BKR.at[0, 0, place].set(score[t]),
            position_BKR=slab.position_BKR.at[0, 0, place].set(t),
        )


def test_bytes_do_not_grow_with_the_tokens_generated_and_all_readers_share_one_keep_set():
    net, keep = model("0_1s_0_0"), Keep("h2o", budget=6)
    assert sorted(KeptBy(keep, prompt=8).init(net.config, 1, 64).slabs) == [0], "one cache, three readers"
    sizes = [
        KeptBy(keep, prompt=40, new=new).init(net.config, 1, 40 + new).slabs[0].position_BKR.shape
        for new in (1, 100)
    ]
    assert sizes[0] == sizes[1]
    assert generate(net, PROMPTS, 4, keep=keep)
