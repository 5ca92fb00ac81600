"""With every cache and every division into steps, the logits equal those of the whole sequence at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn.cache import Contiguous, Paged, Ring
from mixattn.spec import PATTERNS, ModelConfig, kv_bytes, kv_bytes_by_owner
from tests.mixattn.tiny import SHORT, TINY, logits, model, tokens, wired

W = SHORT.window
LENGTHS = (W - 1, W, W + 1, 2 * W + 3)
CAPACITY = 16
PAGE = {"full": 4, "sliding": 2}


def paged(config: ModelConfig, batch: int, capacity: int) -> Paged:
    """Rows whose pages are scattered over the pools, in a different order per kind."""
    table_pages = {kind: -(-capacity // size) for kind, size in PAGE.items()}
    pages = {kind: 1 + batch * n + 3 for kind, n in table_pages.items()}
    cache = Paged.init(config, pages=pages, page_size=PAGE, batch=batch, table_pages=table_pages)
    tables = {}
    for seed, kind in enumerate(cache.tables):
        order = 1 + np.random.default_rng(seed).permutation(pages[kind] - 1)
        tables[kind] = jnp.asarray(order[: batch * table_pages[kind]].reshape(batch, -1), jnp.int32)
    return dataclasses.replace(cache, tables=tables)


CACHES = {"contiguous": Contiguous.init, "ring": Ring.init, "paged": paged}


def prepared(cache, start_B, count_B):
    """The cache with the start and the number of real tokens of the next step."""
    if isinstance(cache, Paged):
        return cache.with_rows(cache.tables, start_B, count_B)
    return cache.with_counts(count_B)


@functools.partial(jax.jit, static_argnames=("graphdef", "last_only"))
def _step(graphdef, params, tokens_BT, cache, last_only=False):
    m = nnx.merge(graphdef, params)
    out = m.forward(tokens_BT, cache=cache, last_only=last_only)
    return m.head(out.hidden_BTD), out.cache


def step(config, tokens_BT, cache, last_only=False):
    return _step(*nnx.split(model(config)), tokens_BT, cache, last_only)


@pytest.mark.parametrize("chunk", [1, 3, W - 1, W, W + 1, 2 * W + 3])
@pytest.mark.parametrize("kind", CACHES)
def test_chunked_prefill_is_the_teacher_forced_forward(kind, chunk):
    config, T = SHORT, max(LENGTHS)
    rows = tokens(2, T)
    cache, got = CACHES[kind](config, 2, CAPACITY), []
    for at in range(0, T, chunk):
        # The tail is padded to the chunk's size, so that one program serves all chunks.
        part = rows[:, at : at + chunk]
        count_B = jnp.full(2, part.shape[1], jnp.int32)
        padded = jnp.pad(part, ((0, 0), (0, chunk - part.shape[1])))
        out, cache = step(config, padded, prepared(cache, jnp.full(2, at, jnp.int32), count_B))
        got.append(out[:, : part.shape[1]])
    np.testing.assert_allclose(np.concatenate(got, 1), logits(config, rows), atol=2e-5)


@pytest.mark.parametrize("kind", CACHES)
def test_rows_of_different_lengths_decode_as_if_alone(kind):
    """One padded prefill, then decode steps in each of which one row pauses (count 0)."""
    prompt_B = np.array(LENGTHS)
    B, T = len(LENGTHS), max(LENGTHS)
    rows = tokens(B, CAPACITY)
    want = logits(SHORT, rows)
    cache = CACHES[kind](SHORT, B, CAPACITY)
    length_B = jnp.asarray(prompt_B, jnp.int32)
    prompt = jnp.where(jnp.arange(T)[None] < length_B[:, None], rows[:, :T], 60)
    out, cache = step(SHORT, prompt, prepared(cache, jnp.zeros(B, jnp.int32), length_B), last_only=True)
    np.testing.assert_allclose(out[:, 0], want[np.arange(B), prompt_B - 1], atol=2e-5)
    for i in range(6):
        live_B = (np.arange(B) != i % B) & (prompt_B < CAPACITY)
        next_B = rows[np.arange(B), np.minimum(prompt_B, CAPACITY - 1)]
        token_B1 = jnp.where(live_B, next_B, 60)[:, None]
        count_B = jnp.asarray(live_B, jnp.int32)
        out, cache = step(SHORT, token_B1, prepared(cache, jnp.asarray(prompt_B, jnp.int32), count_B))
        assert np.isfinite(out).all()
        at = live_B.nonzero()[0]
        np.testing.assert_allclose(out[at, 0], want[at, prompt_B[at]], atol=2e-5)
        prompt_B = prompt_B + live_B


@pytest.mark.parametrize("kind", CACHES)
def test_last_only_prefill_leaves_the_same_cache(kind):
    count_B = jnp.asarray([7, 13], jnp.int32)
    start_B = jnp.zeros(2, jnp.int32)
    whole, after = step(SHORT, tokens(2, 13), prepared(CACHES[kind](SHORT, 2, CAPACITY), start_B, count_B))
    last, after_last = step(
        SHORT, tokens(2, 13), prepared(CACHES[kind](SHORT, 2, CAPACITY), start_B, count_B), True
    )
    np.testing.assert_allclose(last[:, 0], whole[jnp.arange(2), count_B - 1], atol=1e-5)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(after_last), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_ring_that_forgets_one_key_too_early_is_caught():
    """Negative control: a ring with one slot too few gives other logits."""
    rows, narrow = tokens(2, 13), dataclasses.replace(SHORT, window=W - 1)
    cache = Ring.init(narrow, 2, CAPACITY)
    for at in range(13):
        out, cache = step(SHORT, rows[:, at : at + 1], cache)
    assert np.abs(out[:, 0] - logits(SHORT, rows)[:, -1]).max() > 1e-3


def test_pages_outside_the_window_may_hold_anything():
    """After the window has passed, a sliding row's early pages can be freed: they are null in its table."""
    rows, T = tokens(1, CAPACITY), 12
    cache = paged(SHORT, 1, CAPACITY)
    start_B, count_B = jnp.zeros(1, jnp.int32), jnp.full(1, T, jnp.int32)
    _, cache = step(SHORT, rows[:, :T], prepared(cache, start_B, count_B))
    gone = (T - W + 1) // PAGE["sliding"]
    tables = {**cache.tables, "sliding": cache.tables["sliding"].at[:, :gone].set(0)}
    cache = cache.with_rows(tables, count_B, jnp.ones(1, jnp.int32))
    out, _ = step(SHORT, rows[:, T : T + 1], cache)
    assert gone >= 3
    np.testing.assert_allclose(out[:, 0], logits(SHORT, rows)[:, T], atol=2e-5)


PAPER = ModelConfig(n_layers=24, n_heads=12, n_kv_heads=3, head_dim=128, window=1024)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("capacity", [700, 1024, 3000])
def test_live_caches_hold_exactly_the_formulas_bytes(name, capacity):
    config = dataclasses.replace(PAPER, kv_wiring=name, dtype="bfloat16")
    for cache_type, windowed in ((Ring, True), (Contiguous, False)):
        cache = jax.eval_shape(functools.partial(cache_type.init, config, 2, capacity))
        held = {owner: k.size * 2 + v.size * 2 for owner, (k, v) in cache.kv.items()}
        assert held == {i: 2 * b for i, b in kv_bytes_by_owner(config, capacity, windowed=windowed).items()}
        assert sum(held.values()) == 2 * kv_bytes(config, capacity, windowed=windowed)


def test_a_caches_own_count_of_its_bytes_is_the_formula():
    assert sum(Ring.init(TINY, 3, 40).nbytes().values()) == 3 * kv_bytes(TINY, 40, "float32")


def test_readers_do_not_change_the_bytes():
    few, many = wired("0s_1_2s", n_layers=3), wired("0s_1_2s_2s_1_0s", n_layers=6)
    assert Ring.init(few, 1, 40).nbytes() == Ring.init(many, 1, 40).nbytes()


def test_a_paged_cache_holds_pages_times_page_bytes():
    cache = paged(TINY, 2, CAPACITY)
    row_bytes = 2 * TINY.n_kv_heads * TINY.head_dim * 4
    for owner, held in cache.nbytes().items():
        kind = "full" if TINY.layers[owner].window is None else "sliding"
        assert held == cache.pools[owner].pages * PAGE[kind] * row_bytes


def test_positions_beside_a_cache_are_refused():
    with pytest.raises(ValueError, match="a cache determines the positions"):
        model(TINY).forward(
            tokens(), cache=Ring.init(TINY, 2, 40), positions_BT=jnp.zeros((2, 23), jnp.int32)
        )
