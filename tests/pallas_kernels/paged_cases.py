"""Cases of `paged.attend` for tests: ragged batches over paged pools."""

from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike


class PagedCase(NamedTuple):
    """One call of `attend`. `rows` are (start, count) pairs."""

    name: str
    rows: tuple[tuple[int, int], ...]
    C: int
    N: int
    K: int
    H: int
    page_size: int
    P: int
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    share: bool = False  # the first two rows share the pages that both fill

    @property
    def options(self) -> dict:
        """The static keyword arguments."""
        return {name: getattr(self, name) for name in ("window", "softcap", "scale")}


CASES = (
    PagedCase("decode", ((36, 1), (0, 1), (15, 1)), 1, 4, 2, 64, 8, 8),
    PagedCase("decode_page_boundary", ((7, 1), (8, 1), (63, 1)), 1, 4, 2, 64, 8, 8),
    PagedCase("decode_empty_rows", ((20, 1), (0, 0), (33, 0), (5, 1)), 1, 8, 1, 64, 8, 8),
    PagedCase("decode_window", ((36, 1), (0, 1), (63, 1)), 1, 4, 4, 64, 8, 8, window=9),
    PagedCase("decode_window_of_one", ((36, 1), (8, 1), (0, 0)), 1, 4, 2, 64, 8, 8, window=1),
    PagedCase("decode_window_wider", ((36, 1), (8, 1), (0, 0)), 1, 4, 2, 64, 8, 8, window=500),
    PagedCase("decode_shared", ((36, 1), (41, 1), (15, 1)), 1, 4, 2, 64, 8, 8, share=True),
    PagedCase("mixed", ((20, 6), (31, 1), (0, 3), (9, 0)), 6, 4, 1, 64, 8, 8),
    PagedCase("mixed_window", ((20, 6), (31, 1), (0, 3), (58, 6)), 6, 4, 1, 64, 8, 8, window=11),
    PagedCase("mixed_shared_softcap", ((20, 6), (31, 1), (0, 3)), 6, 4, 2, 64, 8, 8, softcap=5.0, share=True),
    PagedCase("prefill_pages_16", ((0, 40), (16, 24)), 40, 8, 1, 128, 16, 4, scale=0.25),
    PagedCase("wide_table", ((600, 4), (3, 2), (250, 3), (7, 0)), 4, 2, 1, 64, 16, 40),
    PagedCase("wide_window", ((600, 4), (3, 2), (310, 3)), 4, 2, 1, 64, 16, 40, window=290),
    PagedCase("head_80", ((17, 2), (3, 2)), 2, 4, 2, 80, 8, 4, window=6, softcap=5.0),
    PagedCase("head_256", ((17, 1), (30, 1)), 1, 2, 2, 256, 16, 2),
)


class Batch(NamedTuple):
    """Numpy arguments of one case, and the keys and values of each row by position.

    `page_BS` and `offset_BS` are where `write` puts every (row, position).
    """

    q_BCNH: np.ndarray
    k_BSKH: np.ndarray
    v_BSKH: np.ndarray
    page_BS: np.ndarray
    offset_BS: np.ndarray
    table_BP: np.ndarray
    start_B: np.ndarray
    count_B: np.ndarray
    pages: int


def batch(case: PagedCase, dtype: DTypeLike = "float32", seed: int = 0, spare: int = 3) -> Batch:
    """A random batch. Pages are in random order; table entries that are not needed are invalid on purpose."""
    rng = np.random.default_rng(seed)
    B, P, t = len(case.rows), case.P, case.page_size
    S = P * t
    start_B, count_B = np.array(case.rows, np.int32).T
    pages = 1 + B * P + spare
    table_BP = 1 + rng.permutation(B * P + spare)[: B * P].reshape(B, P)
    k_BSKH, v_BSKH = (rng.standard_normal((B, S, case.K, case.H)).astype(dtype) for _ in range(2))
    end_B = np.where(count_B > 0, start_B + count_B, 0)
    if case.share:
        both = min(start_B[0], start_B[1]) // t
        table_BP[1, :both] = table_BP[0, :both]
        k_BSKH[1, : both * t], v_BSKH[1, : both * t] = k_BSKH[0, : both * t], v_BSKH[0, : both * t]
    page_BS = np.repeat(table_BP, t, axis=1)
    page_BS = np.where(
        np.arange(S)[None] < end_B[:, None], page_BS, pages
    )  # beyond the end nothing is written
    first_B = np.zeros(B, int) if case.window is None else np.maximum(start_B - case.window + 1, 0) // t
    logical_P = np.arange(P)[None]
    needed_BP = (logical_P >= first_B[:, None]) & (logical_P * t < end_B[:, None])
    table_BP = np.where(needed_BP, table_BP, 10**6 + table_BP)
    return Batch(
        rng.standard_normal((B, case.C, case.N, case.H)).astype(dtype),
        k_BSKH,
        v_BSKH,
        page_BS.astype(np.int32),
        np.broadcast_to(np.arange(S) % t, (B, S)).astype(np.int32),
        table_BP.astype(np.int32),
        start_B,
        count_B,
        pages,
    )
