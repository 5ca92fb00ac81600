"""What keys in pages receive from queries: sums of chunks, and weights of a step without copied pages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import paged
from pallas_kernels.paged import by_head
from pallas_kernels.paged_votes import column_sums

B, K, G, H, PAGE, P = 3, 2, 3, 16, 4, 10
S = PAGE * P


@functools.cache
def given():
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((B, S, K, H)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((B, S, K * G, H)).astype(np.float32)
    table = 1 + rng.permutation(B * P).reshape(B, P).astype(np.int32)
    pool = paged.init(1 + B * P, PAGE, K, H, jnp.float32)
    at = np.arange(S)
    pages, offsets = table[:, at // PAGE].reshape(-1), np.tile(at % PAGE, B)
    pool = paged.write(pool, k.reshape(-1, K, H), v.reshape(-1, K, H), pages, offsets.astype(np.int32))
    return q, k, v, pool, jnp.asarray(table)


def dense(q, k, length, first, softcap=None):
    """sums_KS of one row in float64."""
    sums = np.zeros((K, S))
    for t in range(first, length):
        for n in range(K * G):
            score = k[: t + 1, n // G].astype(np.float64) @ q[t, n] / np.sqrt(H)
            score = softcap * np.tanh(score / softcap) if softcap else score
            weight = np.exp(score - score.max())
            sums[n // G, : t + 1] += weight / weight.sum()
    return sums


@functools.partial(jax.jit, static_argnames="softcap")
def chunk_sums(q, pool, table, start, count, first, softcap=None):
    lse = paged.attend(q, pool, table, start, count, softcap=softcap, return_lse=True)[1]
    return column_sums(q, pool, table, start, count, lse, first_B=first, softcap=softcap)


@pytest.mark.parametrize("chunk", [1, 7, PAGE, S])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_sums_of_chunks_are_those_of_the_definition(chunk, softcap):
    q, k, _, pool, table = given()
    length, first = np.array([S, 17, 30], np.int32), np.array([0, 0, 25], np.int32)
    total = np.zeros((B, K, S), np.float32)
    for start in range(0, S, chunk):
        part = np.zeros((B, chunk, K * G, H), np.float32)
        part[:, : min(chunk, S - start)] = q[:, start : start + chunk]
        count = np.clip(length - start, 0, chunk).astype(np.int32)
        begin = np.full(B, start, np.int32)
        total += np.asarray(chunk_sums(part, pool, table, begin, count, first, softcap))
    want = np.stack([dense(q[b], k[b], length[b], first[b], softcap) for b in range(B)])
    np.testing.assert_allclose(total, want, atol=3e-5)
    np.testing.assert_allclose(total.sum(-1), np.tile(G * (length - first)[:, None], (1, K)), rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("backend", ["reference", "interpret"])
def test_backends_agree(backend, softcap):
    """ "interpret" is the TPU kernel under Pallas' interpreter; it reads pools of rows."""
    q, _, _, pool, table = given()
    keys = pool.keys if pool.layout == "rows" else jnp.swapaxes(pool.keys, -1, -2)
    pool = paged.Pool(keys, pool.values, "rows")
    start, count, first = (jnp.array(x, jnp.int32) for x in ([8, 0, 3], [7, 5, 0], [10, 2, 0]))
    part = jnp.asarray(q[:, :7])
    lse = paged.attend(part, pool, table, start, count, softcap=softcap, return_lse=True)[1]
    got, want = (
        column_sums(part, pool, table, start, count, lse, first_B=first, softcap=softcap, backend=name)
        for name in (backend, "xla")
    )
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert float(got.sum()) > 1


def test_no_array_of_chunk_and_prefix_exists():
    """The largest intermediate of a chunk of 64 over 4,096 positions is smaller than chunk x prefix."""
    C, pages = 64, 4096 // 16
    pool = paged.init(pages + 1, 16, K, H, jnp.float32)
    one = jnp.zeros(1, jnp.int32)
    q, lse = jnp.zeros((1, C, K * G, H)), jnp.zeros((1, C, K * G))
    run = jax.jit(column_sums)
    memory = run.lower(q, pool, jnp.zeros((1, pages), jnp.int32), one, one, lse).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * K * G * C * 4096 / 4


@pytest.mark.parametrize("shared", [False, True])
def test_weights_of_a_step_are_those_of_the_definition_whether_pages_are_shared_or_not(shared):
    q, _, _, pool, table = given()
    start = jnp.array([S - 1, 0, 21], jnp.int32)
    count = jnp.array([1, 1, 1], jnp.int32)
    table = table.at[2, :2].set(table[0, :2]) if shared else table
    arguments = (jnp.asarray(q[:, :1]), pool, table, start, count)
    out, weights = jax.jit(functools.partial(paged.attend, return_weights=True))(*arguments)
    want, all_weights = paged.attend(*arguments, return_weights=True, backend="reference")
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(weights, all_weights, atol=1e-6)


def test_a_write_by_head_reaches_each_head_at_its_own_place_and_reads_back():
    rng = np.random.default_rng(1)
    pool = paged.init(6, PAGE, K, H, jnp.float32)
    k, v = (jnp.asarray(rng.standard_normal((2, K, H)), jnp.float32) for _ in range(2))
    page, offset = jnp.array([[1, 3], [5, 99]]), jnp.array([[0, 2], [3, 0]])
    pool = by_head.write(pool, k, v, page, offset)
    for b, head in ((0, 0), (0, 1), (1, 0)):
        k_KRH, v_KRH = by_head.read(pool, jnp.full((K, 1), page[b, head]), jnp.full((K, 1), offset[b, head]))
        np.testing.assert_array_equal(k_KRH[head, 0], k[b, head])
        np.testing.assert_array_equal(v_KRH[head, 0], v[b, head])
    assert int((pool.values != 0).sum()) == 3 * H, (
        "a head outside the pool is dropped, and no other is touched"
    )
