"""The cache that evicts: keep-sets and outputs against float64, and what a model generates with it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer, generate
from mixattn.cache import Contiguous, Kept, KeptBy
from mixattn.generation import cache_kind, decode, pad, prefill
from mixattn.keep import SCORERS, Keep
from mixattn.sample import SamplingParams
from tests.mixattn.keep.oracle import Stepped

TINY = {"d_model": 32, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48, "vocab_size": 50}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13], list(range(20, 42))]
QUICK = ("h2o", "snapkv", "keydiff", "expected")  # one of each way to score
STEPPING = [name for name, scorer in SCORERS.items() if scorer.decodes and name != "random"]


def model(wiring, window=8, seed=0, heads=4, **options):
    config = ModelConfig(
        n_layers=wiring.count("_") + 1,
        kv_wiring=wiring,
        window=window,
        n_heads=heads,
        dtype="float32",
        **TINY | options,
    )
    return Transformer(config, rngs=nnx.Rngs(seed))


class Driven:
    """A cache of one owner and its readers that gets queries, keys and values straight from a test."""

    def __init__(self, keep, layers, heads, length):
        wiring = "_".join("0" * layers)
        self.config = model(wiring, heads=heads).config
        self.cache = KeptBy(keep, prompt=length, padding=64).init(self.config, 1, 0)

    def step(self, q_LTNH, k_TKH, v_TKH):
        out_LTNH, self.cache = stepped(self.cache, q_LTNH, k_TKH, v_TKH, self.config)
        return np.asarray(out_LTNH)

    def kept(self):
        slab = self.cache.slabs[0]
        return [sorted(int(p) for p in head if p >= 0) for head in np.asarray(slab.position_BKR)[0]]


@functools.partial(jax.jit, static_argnames="config")
def stepped(cache, q_LTNH, k_TKH, v_TKH, config):
    cache = cache.with_counts(jnp.full(1, len(k_TKH))).write(config.layers[0], k_TKH[None], v_TKH[None])
    outs = []
    for layer, q_TNH in zip(config.layers, q_LTNH, strict=True):
        out, cache = cache.attend(layer, q_TNH[None])
        outs.append(out[0])
    return jnp.stack(outs), cache.advance(len(k_TKH))


def walk(keep, *, layers=1, G=1, T=20, steps=14, seed=0, broken=None, score_scale=1.0, signs=False):
    """Runs cache and oracle over the same random tensors; yields both keep-sets and outputs of each step."""
    rng, K, H = np.random.default_rng(seed), 2, 8
    q = rng.standard_normal((layers, T + steps, K * G, H)).astype(np.float32) * score_scale
    k, v = (rng.standard_normal((T + steps, K, H)).astype(np.float32) for _ in range(2))
    k = np.sign(k) if signs else k
    driven = Driven(keep, layers, K * G, T)
    driven.step(q[:, :T], k[:T], v[:T])
    prompt = (np.float64(x) for x in (q[:, :T], k[:T], v[:T]))
    twin = Stepped(keep, *prompt, keep.total(T, 0), broken=broken)
    yield driven.kept(), [sorted(head) for head in twin.kept], 0.0, 0.0
    for t in range(T, T + steps):
        got = driven.step(q[:, t : t + 1], k[t : t + 1], v[t : t + 1])[:, 0]
        want = twin.step(*(np.float64(x) for x in (q[:, t], k[t], v[t])), t)
        yield driven.kept(), [sorted(head) for head in twin.kept], got, want


@pytest.mark.parametrize("scorer", STEPPING)
@pytest.mark.parametrize("promotion", ["compete", "always"])
@pytest.mark.parametrize(("layers", "G", "recent"), [(1, 1, 3), (2, 3, 1)])
def test_keep_sets_and_outputs_are_those_of_float64(scorer, promotion, layers, G, recent):
    keep = Keep(scorer, budget=9, recent=recent, sinks=1, promotion=promotion)
    for t, (got, want, out, expected) in enumerate(walk(keep, layers=layers, G=G)):
        assert got == want, f"step {t}"
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("scope", ["all_consumers", "owner_only"])
def test_the_scope_says_whose_queries_vote(scope):
    keeps = []
    for got, want, _, _ in walk(Keep("h2o", budget=7, scope=scope), layers=3, score_scale=2.0):
        assert got == want
        keeps.append(got)
    other = "owner_only" if scope == "all_consumers" else "all_consumers"
    assert keeps != [got for got, *_ in walk(Keep("h2o", budget=7, scope=other), layers=3, score_scale=2.0)]


@pytest.mark.parametrize("pool", [1, 5])
def test_snapkv_cuts_the_prompt_by_its_last_queries_and_then_grows(pool):
    keep = Keep("snapkv", budget=8, when="prompt", window=4, pool=pool, recent=4)
    for t, (got, want, out, expected) in enumerate(walk(keep, G=2)):
        assert got == want
        assert all(len(head) == 8 + t for head in got)
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("broken", ["evict first", "ties"])
def test_a_broken_rule_is_noticed(broken):
    """The control: the oracle with one rule broken disagrees with the cache."""
    keep, signs = (Keep("knorm", budget=9, recent=2), True) if broken == "ties" else (Keep(budget=9), False)
    runs = [walk(keep, broken=which, signs=signs) for which in (None, broken)]
    right, wrong = ([(got == want, np.abs(out - said).max()) for got, want, out, said in run] for run in runs)
    assert all(same and error < 1e-5 for same, error in right)
    assert not all(same and error < 1e-5 for same, error in wrong)


@pytest.mark.parametrize(
    "scorer",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SCORERS],
)
def test_a_budget_that_holds_everything_changes_no_token_and_a_small_one_does(scorer):
    net = model("0_1s_0")
    full = generate(net, PROMPTS, 12, cache=Contiguous)
    options = {"when": "decode" if SCORERS[scorer].decodes else "prompt", "sinks": 0, "window": 3}
    assert generate(net, PROMPTS, 12, keep=Keep(scorer, 60, **options)) == full
    cut = generate(net, PROMPTS, 12, keep=Keep(scorer, 3, **options))
    assert cut != full
    assert [row[0] for row in cut] == [row[0] for row in full]  # a prompt is computed before it is cut


def test_recent_keys_alone_are_a_sliding_window():
    full, sliding = model("0"), model("0s", window=8)
    prompts = [[3, 4, 5, 6, 7, 8], [9, 10]]  # within the window, so that both compute them alike
    assert generate(full, prompts, 20, keep=Keep("recent", 7)) == generate(sliding, prompts, 20)


@pytest.mark.parametrize("scorer", ["h2o", pytest.param("tova", marks=pytest.mark.long), "snapkv"])
def test_a_row_keeps_the_same_keys_whatever_batch_it_is_in(scorer):
    """Also of layers above the last owner, where a plain prefill computes the last token alone."""
    net = model("0_1_1")
    keep = Keep(scorer, 0.5, when="decode" if scorer != "snapkv" else "prompt", window=1)

    def kept(prompts):
        tokens_BT, count_B = pad(prompts, net.config.vocab_size)
        made = cache_kind(Kept, keep, net.config, [len(p) for p in prompts], 8)
        graphdef, params = nnx.split(net)
        sampling, stop = SamplingParams.greedy(len(prompts), np), jnp.zeros(0, jnp.int32)
        state = prefill(graphdef, params, tokens_BT, count_B, sampling, stop, cache=made, capacity=64)
        state, _ = decode(graphdef, params, state, sampling, stop, 8)
        return {
            owner: [[sorted(p[p >= 0]) for p in row] for row in np.asarray(slab.position_BKR)]
            for owner, slab in state.cache.slabs.items()
        }

    together, alone = kept(PROMPTS), [kept([prompt]) for prompt in PROMPTS]
    for owner, rows in together.items():
        for i, row in enumerate(rows):
            assert row == alone[i][owner][0]
            assert all(len(head) == max(1, len(PROMPTS[i]) // 2) + 8 * (scorer == "snapkv") for head in row)


def test_a_budget_in_blocks_that_holds_everything_changes_no_token():
    net = model("0_1s_0")
    full = generate(net, PROMPTS, 10, cache=Contiguous)
    assert generate(net, PROMPTS, 10, keep=Keep("tova", 60, prefill="blockwise", block=11)) == full
    assert generate(net, PROMPTS, 10, keep=Keep(budget=4, prefill="blockwise", block=11)) != full


def test_rolling_positions_are_those_of_the_survivors_alone():
    """One layer: its keys depend on their tokens only, so the survivors alone give the same state."""
    net, keep = model("0", n_kv_heads=1), Keep("h2o", 6, positions="rolling", sinks=1)
    prompt, fed = [3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7], [9, 3, 23, 8, 46, 2, 6]
    cache = KeptBy(keep, prompt=len(prompt)).init(net.config, 1, 64)
    cache = net.forward(jnp.asarray([prompt]), cache=cache).cache
    tokens = list(prompt)
    for token in fed:
        tokens.append(token)
        position = np.asarray(cache.slabs[0].position_BKR)[0, 0]
        survivors = [tokens[p] for p in sorted(position[position >= 0])] + [token]
        out = net.forward(jnp.asarray([[token]]), cache=cache)
        alone = net.forward(jnp.asarray([survivors]))
        np.testing.assert_allclose(out.hidden_BTD[0, 0], alone.hidden_BTD[0, -1], atol=2e-5)
        original = dataclasses.replace(cache, by=dataclasses.replace(cache.by, keep=Keep("h2o", 6, sinks=1)))
        apart = net.forward(jnp.asarray([[token]]), cache=original).hidden_BTD[0, 0]
        assert np.abs(apart - alone.hidden_BTD[0, -1]).max() > 1e-3  # the control
        cache = out.cache


@pytest.mark.parametrize(
    ("options", "keep", "said"),
    [
        ({"wiring": "0s_1s"}, Keep(budget=4), "nothing to evict"),
        ({"wiring": "0", "positions": "learned"}, Keep(budget=4, positions="rolling"), "learned positions"),
        ({"wiring": "0"}, Keep(budget=0.2), "of a prompt of 3 tokens is 0 keys"),
    ],
)
def test_a_budget_that_does_not_fit_the_model_is_refused(options, keep, said):
    with pytest.raises(ValueError, match=said):
        generate(model(**options), PROMPTS, 4, keep=keep)


def test_a_cache_without_a_budget_and_a_budget_without_its_cache_are_refused():
    with pytest.raises(ValueError, match="needs a budget"):
        generate(model("0"), PROMPTS, 4, cache=Kept)
    with pytest.raises(ValueError, match="omit one"):
        generate(model("0"), PROMPTS, 4, cache=Contiguous, keep=Keep(budget=4))


def test_a_nan_in_one_row_leaves_its_neighbours_keys_alone():
    rng = np.random.default_rng(0)
    config = model("0", heads=2).config
    q, k, v = (rng.standard_normal((2, 12, 2, 8)).astype(np.float32) for _ in range(3))
    kept = []
    for poison in (False, True):
        q[0, 11] = np.nan if poison else q[0, 10]
        cache = KeptBy(Keep(budget=5), prompt=9).init(config, 2, 0)
        for span in (slice(0, 9), slice(9, 10), slice(10, 11), slice(11, 12)):
            cache = cache.write(config.layers[0], jnp.asarray(k[:, span]), jnp.asarray(v[:, span]))
            _, cache = cache.attend(config.layers[0], jnp.asarray(q[:, span]))
            cache = cache.advance(span.stop - span.start)
        kept.append(np.asarray(cache.slabs[0].position_BKR)[1])
    assert np.array_equal(*kept)
    assert jax.tree.structure(cache) is not None
