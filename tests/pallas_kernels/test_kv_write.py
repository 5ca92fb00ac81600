"""Every backend of `kv_write` against one plain loop, in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import kv_write, paged
from pallas_kernels.kv_write import tpu

P, K, t, H = 6, 2, 8, 64
BACKENDS = [
    ("reference", "rows"),
    ("xla", "rows"),
    ("interpret", "rows"),
    ("reference", "columns"),
    ("xla", "columns"),
]


def by_loop(pages_PKtH, rows_TKH, page_T, offset_T):
    """The definition, one token at a time."""
    after = pages_PKtH.copy()
    for page, offset in zip(page_T, offset_T, strict=True):
        if 0 < page < len(after) and offset == 0:
            after[page] = 0
    for row, page, offset in zip(rows_TKH, page_T, offset_T, strict=True):
        if 0 < page < len(after):
            after[page, :, offset] = row
    return after


def example(positions, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    T = len(positions)
    pages = [rng.standard_normal((P, K, t, H)).astype(dtype) for _ in range(2)]
    rows = [rng.standard_normal((T, K, H)).astype(dtype) for _ in range(2)]
    page_T, offset_T = np.array(positions, np.int32).reshape(T, 2).T
    return *pages, *rows, page_T, offset_T


@functools.partial(jax.jit, static_argnames=("layout", "backend"))
def written(keys, values, k, v, page, offset, *, layout, backend):
    keys = jnp.swapaxes(keys, 2, 3) if layout == "columns" else keys
    keys, values = kv_write.write(keys, values, k, v, page, offset, layout=layout, backend=backend)
    return jnp.swapaxes(keys, 2, 3) if layout == "columns" else keys, values


def check(positions, layout, backend, dtype="float32"):
    positions = positions + [(P, 0)] * (6 - len(positions))  # one shape, one compilation
    keys, values, k, v, page_T, offset_T = arrays = example(positions, dtype)
    got = written(*arrays, layout=layout, backend=backend)
    for pages, before, rows in zip(got, (keys, values), (k, v), strict=True):
        assert np.array_equal(pages, by_loop(before, rows, page_T, offset_T))


PLACES = {
    "decode": [(3, 2), (1, 7), (5, 4), (2, 1)],
    "page_after_page": [(4, 5), (4, 6), (4, 7), (2, 0), (2, 1), (2, 2)],
    "opened_pages_forget": [(1, 0), (5, 0)],
    "a_page_left_and_met_again": [(3, 1), (2, 6), (3, 4), (2, 0), (3, 0)],
    "some_dropped": [(6, 1), (3, 3), (0, 0), (-1, 2), (1, 4), (9, 0)],
    "all_dropped": [(6, 1), (0, 3)],
    "one": [(5, 7)],
}


@pytest.mark.parametrize(("backend", "layout"), BACKENDS)
@pytest.mark.parametrize("name", PLACES)
def test_every_body_writes_what_the_loop_writes(name, backend, layout):
    check(PLACES[name], layout, backend)


@pytest.mark.parametrize("backend", ["xla", "interpret"])
def test_bfloat16_rows_arrive_to_the_bit(backend):
    check(PLACES["page_after_page"], "rows", backend, "bfloat16")


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(-1, P + 1), st.integers(0, t - 1)), min_size=5, max_size=5, unique=True)
)
def test_any_places_in_any_order(positions):
    for backend in ("xla", "interpret"):
        check(positions, "rows", backend)


@given(st.lists(st.tuples(st.integers(1, P), st.integers(0, t - 1)), min_size=9, max_size=9))
def test_the_tpu_kernel_never_comes_back_to_a_page(positions):
    """Or it would fetch what is still on its way back: no interpreter models a pipeline's own copies."""
    page_T, offset_T = np.array(positions, np.int32).T
    order, page, offset, real = (np.asarray(x) for x in tpu.visits(page_T, offset_T, P, t))
    runs = [page[i] for i in range(len(page)) if i == 0 or page[i] != page[i - 1]]
    assert len(set(runs)) == len(runs)
    assert real == np.sum(page_T < P)
    assert np.array_equal(page[:real], page_T[order[:real]])
    assert np.array_equal(offset, offset_T[order])


def test_explain_says_why_a_pool_of_columns_is_left_to_xla():
    *arrays, page_T, offset_T = example(PLACES["one"])
    with pytest.raises(NotImplementedError, match="keeps its keys in columns"):
        kv_write.explain(*arrays[1:], page_T, offset_T, layout="columns", backend="interpret")
    assert kv_write.explain(*arrays[1:], page_T, offset_T, layout="rows").backend == "xla"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k_TKH": np.zeros((2, K, H), np.float32)}, "need k and v of shape"),
        ({"offset_T": np.zeros(4, np.int32)}, "1 offsets"),
        ({"v_TKH": np.zeros((1, K, H), jnp.bfloat16)}, "v are float32 and bfloat16"),
    ],
)
def test_bad_calls_name_what_disagrees(change, sentence):
    pool = paged.init(P, t, K, H, "float32")
    names = ("k_TKH", "v_TKH", "page_T", "offset_T")
    arguments = dict(zip(names, example([(1, 2)])[2:], strict=True)) | change
    with pytest.raises(ValueError, match=sentence):
        paged.write(pool, **arguments)
