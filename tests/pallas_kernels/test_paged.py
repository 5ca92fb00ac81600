"""Every backend of `paged` against float64, over one list of ragged batches, pools poisoned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import paged
from pallas_kernels.paged import gpu, pagewise, tpu
from pallas_kernels.paged.xla import pages_in_view
from tests.pallas_kernels import oracle, races
from tests.pallas_kernels.paged_cases import CASES, Batch, PagedCase, batch

# A variant is a backend, or "weights": the xla backend that returns weights, which always gathers pages.
# "interpret" is the tpu backend under the Pallas interpreter, with tiles small enough to make several.
QUICK = ("decode_window", "decode_empty_rows", "mixed", "mixed_window")


def quick(case, dtype):
    """The other cases run nightly, since compiling dominates the time."""
    return () if case.name in QUICK and dtype == "float32" else pytest.mark.long


INTERPRETED = [
    pytest.param(case, dtype, id=f"{case.name}-{dtype}", marks=quick(case, dtype))
    for case in CASES
    for dtype in ("float32", "bfloat16")
]
RUNS = [
    pytest.param(case, variant, dtype, id=f"{case.name}-{variant}-{dtype}", marks=marks)
    for case in CASES
    for variant, dtype, marks in (
        ("reference", "float32", ()),
        ("xla", "float32", ()),
        ("weights", "float32", () if case.name in QUICK else pytest.mark.long),
        ("xla", "bfloat16", () if case.name in QUICK else pytest.mark.long),
    )
]


@functools.partial(jax.jit, static_argnames=("case", "dtype", "pages", "layout"))
def _fill(k_BSKH, v_BSKH, page_BS, offset_BS, poison_X, *, case, dtype, pages, layout):
    pool = paged.init(pages, case.page_size, case.K, case.H, dtype, window=case.window, layout=layout)
    flat = (x.reshape(-1, *x.shape[2:]) for x in (k_BSKH, v_BSKH, page_BS, offset_BS))
    pool = paged.write(pool, *flat)
    nan = jnp.full((len(poison_X), case.K, case.H), jnp.nan, dtype)
    for offset in range(case.page_size):
        pool = paged.write(pool, nan, nan, poison_X, jnp.full(len(poison_X), offset))
    return pool


def fill(case: PagedCase, given: Batch, dtype: str, poison: bool = True, layout=None) -> paged.Pool:
    """A pool that holds the batch's keys and values; NaN in every page that no row's live table names."""
    every = np.arange(given.pages, dtype=np.int32)
    free = poison & ~np.isin(every, given.table_BP)
    dead = ~np.isin(given.page_BS, given.table_BP)  # pages below the window were freed
    page_BS = np.where(dead, given.pages, given.page_BS).astype(np.int32)
    shape = case._replace(rows=(), name="", share=False)  # one compilation for all batches of a shape
    return _fill(
        given.k_BSKH,
        given.v_BSKH,
        page_BS,
        given.offset_BS,
        np.where(free, every, given.pages).astype(np.int32),
        case=shape,
        dtype=dtype,
        pages=given.pages,
        layout=layout,
    )


@functools.partial(jax.jit, static_argnames=("case", "backend", "weights"))
def run(q, pool, table, start, count, *, case, backend, weights=False):
    return paged.attend(
        q, pool, table, start, count, **case.options, return_lse=True, return_weights=weights, backend=backend
    )


def row_arguments(given: Batch):
    return given.table_BP, given.start_B, given.count_B


@pytest.mark.parametrize(("case", "variant", "dtype"), RUNS)
def test_agrees_with_the_definition(case, variant, dtype):
    given = batch(case, dtype)
    pool = fill(case, given, dtype)
    weights = variant in ("reference", "weights")
    got = run(
        given.q_BCNH,
        pool,
        *row_arguments(given),
        case=case,
        backend=variant.replace("weights", "xla"),
        weights=weights,
    )
    want = oracle.paged(given, **case.options)
    assert [x.dtype for x in got] == [dtype, "float32", "float32"][: len(got)]
    for x, exact, tolerance in zip(got, want, (oracle.TOLERANCE, oracle.LSE_TOLERANCE, oracle.TOLERANCE)):
        np.testing.assert_allclose(np.float64(x), exact, atol=tolerance[dtype], rtol=0)


@pytest.mark.parametrize("window", [None, 290])
def test_a_row_in_a_wide_table_is_the_same_to_the_last_bit_beside_longer_ones_and_alone(window):
    case = PagedCase("wide", ((40, 4), (600, 4)), 4, 2, 1, 64, 16, 40, window=window)
    given = batch(case)
    pool = fill(case, given, "float32")
    together = run(given.q_BCNH, pool, *row_arguments(given), case=case, backend="xla")[0]
    alone = run(
        given.q_BCNH, pool, *row_arguments(given)[:2], np.array([4, 0], np.int32), case=case, backend="xla"
    )[0]
    np.testing.assert_array_equal(together[0], alone[0])
    assert np.any(together[1] != alone[1])


@pytest.mark.parametrize(("case", "dtype"), INTERPRETED)
def test_the_tpu_kernel_agrees_with_the_definition(case, dtype, monkeypatch):
    monkeypatch.setattr(tpu, "ROWS", 8)
    monkeypatch.setattr(tpu, "KEYS", 16)
    given = batch(case, dtype)
    pool = fill(case, given, dtype, layout="rows")
    got = run(given.q_BCNH, pool, *row_arguments(given), case=case, backend="interpret", weights=True)
    want = oracle.paged(given, **case.options)
    tolerances = oracle.TOLERANCE, oracle.LSE_TOLERANCE, oracle.TOLERANCE
    for x, exact, tolerance in zip(got, want, tolerances, strict=True):
        np.testing.assert_allclose(np.float64(x), exact, atol=tolerance[dtype], rtol=0)


@pytest.mark.interpreter
@pytest.mark.parametrize("planted", [False, True])
def test_the_tpu_kernel_reads_no_page_before_it_arrived(planted, monkeypatch):
    """Under the race detector; without the waits it must report a race."""
    case = PagedCase("race", ((20, 1), (9, 1)), 1, 2, 1, 64, 8, 4, window=12)
    given = batch(case)
    pool = fill(case, given, "float32", layout="rows")
    monkeypatch.setattr(tpu, "KEYS", 8)
    if planted:
        monkeypatch.setattr(tpu, "wait_for", lambda copies: list(copies))
    options = {"window": 12, "scale": 64**-0.5, "softcap": None, "return_weights": False}
    with races.detected() as found:
        out = tpu.attend(given.q_BCNH, pool, *row_arguments(given), **options, interpret=races.PARAMS)[0]
        out.block_until_ready()
        assert found() == planted
    if not planted:
        np.testing.assert_allclose(out, oracle.paged(given, window=12)[0], atol=oracle.TOLERANCE["float32"])


GPU_CASES = [
    pytest.param(case, id=case.name, marks=() if case.name in ("mixed_window",) else pytest.mark.long)
    for case in CASES
    if case.H in (64, 128)
]


@pytest.mark.interpreter
@pytest.mark.parametrize("case", GPU_CASES)
def test_the_gpu_kernel_agrees_with_the_definition(case):
    """Under the Hopper interpreter: barriers, asynchronous copies and wgmma as they are written."""
    given = batch(case, "bfloat16")
    pool = fill(case, given, "bfloat16", layout="rows")
    options = {**case.options, "scale": case.scale or case.H**-0.5, "return_weights": True}
    with plgpu.force_gpu_interpret_mode():
        got = gpu.attend(given.q_BCNH, pool, *row_arguments(given), **options, splits=2)
    want = oracle.paged(given, **case.options)
    tolerances = oracle.TOLERANCE, oracle.LSE_TOLERANCE, oracle.TOLERANCE
    for x, exact, tolerance in zip(got, want, tolerances, strict=True):
        np.testing.assert_allclose(np.float64(x), exact, atol=tolerance["bfloat16"], rtol=0)


@pytest.mark.interpreter
def test_the_gpu_kernel_runs_without_a_race():
    case = PagedCase("race", ((20, 1),), 1, 2, 1, 64, 32, 1)
    given = batch(case, "bfloat16")
    pool = fill(case, given, "bfloat16", layout="rows")
    options = {"window": None, "scale": 64**-0.5, "softcap": None, "return_weights": False}
    with races.detected_on_gpu() as found:
        gpu.attend(given.q_BCNH, pool, *row_arguments(given), **options)[0].block_until_ready()
        assert not found()


@pytest.mark.interpreter
@pytest.mark.parametrize("planted", [False, True])
def test_the_gpu_race_detector_cries_when_two_warpgroups_share_a_buffer(planted):
    """The control of the test above: handing a buffer over without a barrier is seen."""

    def kernel(out_hbm, buffer, handed_over):
        @pl.when(jax.lax.axis_index("warpgroup") == 0)
        def _():
            buffer[...] = jnp.ones_like(buffer)
            plgpu.commit_smem()
            if not planted:
                plgpu.barrier_arrive(handed_over)

        @pl.when(jax.lax.axis_index("warpgroup") == 1)
        def _():
            if not planted:
                plgpu.barrier_wait(handed_over)
            plgpu.copy_smem_to_gmem(buffer, out_hbm)
            plgpu.wait_smem_to_gmem(0)

    with races.detected_on_gpu() as found:
        plgpu.kernel(
            kernel,
            out_type=jax.ShapeDtypeStruct((128,), jnp.float32),
            scratch_types=[plgpu.SMEM((128,), jnp.float32), plgpu.Barrier()],
            num_threads=2,
            thread_name="warpgroup",
        )().block_until_ready()
        assert found() == planted


def test_what_the_tpu_kernel_does_not_support_it_names():
    given = batch(CASES[0])
    pool = paged.init(given.pages, 8, 2, 64, "float32", layout="columns")
    with pytest.raises(NotImplementedError, match="keeps its keys in columns"):
        paged.explain(given.q_BCNH, pool, *row_arguments(given), backend="interpret")


@pytest.mark.parametrize("max_shared", [1, 16])
def test_shared_pages_are_right_whether_few_or_many(max_shared, monkeypatch):
    """Four pages are shared: dense for all (16), or too many for that (1) so that pages are copied."""
    monkeypatch.setattr(pagewise, "MAX_SHARED_PAGES", max_shared)
    case = next(c for c in CASES if c.name == "decode_shared")._replace(name=f"shared_{max_shared}")
    given = batch(case)
    got = run(given.q_BCNH, fill(case, given, "float32"), *row_arguments(given), case=case, backend="xla")
    np.testing.assert_allclose(got[0], oracle.paged(given)[0], atol=oracle.TOLERANCE["float32"])


RAGGED = PagedCase("ragged", ((0, 0),) * 4, 3, 4, 2, 64, 4, 6)


ANY_RAGGED = given(
    rows=st.lists(
        st.integers(0, 3).flatmap(lambda n: st.tuples(st.integers(0, 24 - n), st.just(n))),
        min_size=4,
        max_size=4,
    ),
    share=st.booleans(),
    seed=st.integers(0, 99),
)


def check_ragged(base, backend, dtype, rows, share, seed, layout=None):
    """One compilation for all examples of a `base`."""
    case = base._replace(rows=tuple(rows), share=share)
    given = batch(case, dtype, seed=seed)
    pool = fill(case, given, dtype, layout=layout)
    got = run(given.q_BCNH, pool, *row_arguments(given), case=base, backend=backend)
    want = oracle.paged(given, **case.options)
    for x, exact, tolerance in zip(got, want, (oracle.TOLERANCE, oracle.LSE_TOLERANCE)):
        np.testing.assert_allclose(np.float64(x), exact, atol=tolerance[dtype], rtol=0)


@pytest.mark.parametrize("window", [None, 5])
@settings(max_examples=25)
@ANY_RAGGED
def test_any_ragged_batch_agrees_with_the_definition(window, rows, share, seed):
    check_ragged(RAGGED._replace(window=window), "xla", "float32", rows, share, seed)


@settings(max_examples=25)
@ANY_RAGGED
def test_any_ragged_batch_agrees_under_the_interpreter(rows, share, seed):
    """The TPU kernel: pages of 8, two fetched at a time, so that most rows end inside a group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "KEYS", 16)
        base = RAGGED._replace(window=11, page_size=8, P=3)
        check_ragged(base, "interpret", "float32", rows, share, seed, layout="rows")


@pytest.mark.interpreter
@settings(max_examples=5)
@ANY_RAGGED
def test_any_ragged_batch_agrees_on_the_simulated_gpu(rows, share, seed):
    with plgpu.force_gpu_interpret_mode():
        base = RAGGED._replace(window=11, page_size=8, P=3)
        check_ragged(base, "gpu", "bfloat16", rows, share, seed, layout="rows")


def test_where_a_page_lies_does_not_change_one_bit():
    case = next(c for c in CASES if c.name == "mixed")
    given = batch(case)
    first = run(given.q_BCNH, fill(case, given, "float32"), *row_arguments(given), case=case, backend="xla")
    moved = np.random.default_rng(7).permutation(given.pages - 1) + 1
    shift = np.concatenate([[0], moved, [given.pages]]).astype(np.int32)
    table = np.where(given.table_BP < given.pages, shift[np.minimum(given.table_BP, given.pages)], 0)
    given = given._replace(table_BP=table.astype(np.int32), page_BS=shift[given.page_BS])
    again = run(given.q_BCNH, fill(case, given, "float32"), *row_arguments(given), case=case, backend="xla")
    assert all(bool(jnp.all(a == b)) for a, b in zip(first, again, strict=True))


def test_rows_do_not_see_their_neighbours():
    case = next(c for c in CASES if c.name == "decode")
    given = batch(case)
    out = run(given.q_BCNH, fill(case, given, "float32"), *row_arguments(given), case=case, backend="xla")[0]
    order = np.array([2, 0, 1])
    turned = given._replace(
        **{name: getattr(given, name)[order] for name in ("q_BCNH", "table_BP", "start_B", "count_B")}
    )
    swapped = run(
        turned.q_BCNH, fill(case, given, "float32"), *row_arguments(turned), case=case, backend="xla"
    )[0]
    assert bool(jnp.all(swapped == out[order]))


def test_rows_written_out_of_range_are_dropped_and_the_null_page_stays_zero():
    pool = paged.init(4, 8, 2, 64, "float32")
    ones = np.ones((4, 2, 64), np.float32)
    pool = paged.write(pool, ones, ones, np.array([0, 4, -1, 2], np.int32), np.array([0, 1, 2, 3], np.int32))
    k, v = paged.read(pool, np.arange(4))
    assert np.sum(np.asarray(k)) == np.sum(np.asarray(v)) == 2 * 64
    assert np.all(np.asarray(k)[2, 3] == 1)


def test_copied_pages_are_equal_and_the_rest_is_left_alone():
    case = next(c for c in CASES if c.name == "decode")
    given = batch(case)
    pool = fill(case, given, "float32", poison=False)
    before = [np.asarray(x) for x in paged.read(pool, np.arange(given.pages))]
    src, dst = np.array([3, 5, 7], np.int32), np.array([4, given.pages, 0], np.int32)
    after = paged.read(paged.copy_pages(pool, src, dst), np.arange(given.pages))
    for old, new in zip(before, after, strict=True):
        old = old.copy()
        old[4] = old[3]
        assert np.array_equal(old, new)


def test_a_donated_write_happens_in_place():
    step = jax.jit(paged.write, donate_argnums=0)
    pool = paged.init(256, 16, 2, 64, "float32")
    row = np.zeros((4, 2, 64), np.float32), np.zeros((4, 2, 64), np.float32), *np.ones((2, 4), np.int32)
    memory = step.lower(pool, *row).compile().memory_analysis()
    assert memory.alias_size_in_bytes == pool.nbytes
    assert memory.temp_size_in_bytes < pool.nbytes // 16
    step(pool, *row)
    assert pool.keys.is_deleted()


def test_page_bytes_are_those_of_the_live_arrays():
    for window in (None, 8):
        pool = paged.init(10, 16, 2, 64, "bfloat16", window=window)
        assert pool.nbytes == 10 * paged.page_bytes(16, 2, 64, "bfloat16")
        assert (pool.pages, pool.n_kv_heads, pool.head_dim) == (10, 2, 64)


@given(window=st.integers(1, 40), chunk=st.integers(1, 20), page=st.integers(1, 16), start=st.integers(0, 99))
def test_pages_in_view_are_enough_and_some_start_needs_them_all(window, chunk, page, start):
    def touched(start):
        return (start + chunk - 1) // page - (start - window + 1) // page + 1

    assert touched(start) <= pages_in_view(window, chunk, page)
    assert pages_in_view(window, chunk, page) in {touched(s) for s in range(page)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q_BCNH": np.zeros((3, 1, 4, 32), np.float32)}, "head size 32, the pool 64"),
        ({"q_BCNH": np.zeros((3, 1, 3, 64), np.float32)}, "3 query heads"),
        ({"start_B": np.zeros(2, np.int32)}, "of 3 rows have shapes"),
        ({"q_BCNH": np.zeros((3, 1, 4, 64), jnp.bfloat16)}, "bfloat16, the pool is float32"),
    ],
)
def test_bad_calls_name_what_disagrees(change, sentence):
    given = batch(CASES[0])._replace(**change)
    with pytest.raises(ValueError, match=sentence):
        paged.explain(given.q_BCNH, paged.init(given.pages, 8, 2, 64, "float32"), *row_arguments(given))
