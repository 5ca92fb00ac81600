"""Cases of `attention` for tests and benchmarks."""

from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike


class AttentionCase(NamedTuple):
    """One call of `attention`. `S` counts keys; without positions the queries are the last T of them."""

    name: str
    T: int
    S: int
    N: int
    K: int
    H: int
    window: int | None = None
    B: int = 2
    causal: bool = True
    scale: float | None = None
    softcap: float | None = None
    segments: bool = False  # packed documents of uneven length
    ring: bool = False  # explicit positions: keys in ring order, the first slots empty, a padded query

    @property
    def options(self) -> dict:
        """The static keyword arguments."""
        names = ("window", "causal", "scale", "softcap")
        return {name: getattr(self, name) for name in names}


CASES = (
    AttentionCase("full", 32, 32, 4, 2, 64),
    AttentionCase("full_ragged_tail", 37, 37, 4, 1, 64),  # no block divides 37
    AttentionCase("both_directions", 16, 24, 4, 2, 64, causal=False),
    AttentionCase("window_of_one", 32, 32, 4, 2, 64, window=1),
    AttentionCase("window", 37, 37, 4, 1, 64, window=5),
    AttentionCase("window_after_context", 16, 53, 8, 1, 64, window=7),
    AttentionCase("window_wider_than_context", 32, 32, 4, 2, 64, window=99),
    AttentionCase("window_ends_on_block", 64, 64, 4, 4, 64, window=16),
    AttentionCase("one_query", 1, 37, 8, 2, 64),
    AttentionCase("one_query_window", 1, 37, 8, 2, 64, window=8),
    AttentionCase("head_80_softcap", 24, 24, 4, 2, 80, window=9, softcap=5.0),
    AttentionCase("head_128_scaled", 24, 24, 4, 1, 128, scale=0.25),
    AttentionCase("head_256", 16, 16, 2, 2, 256, window=4),
    AttentionCase("documents", 64, 64, 4, 2, 64, segments=True),
    AttentionCase("documents_window", 64, 64, 4, 2, 64, window=9, segments=True),
    AttentionCase("ring", 8, 24, 4, 2, 64, window=6, ring=True),
    AttentionCase("ring_full", 8, 24, 4, 2, 64, ring=True, softcap=5.0),
    AttentionCase("several_blocks", 300, 300, 2, 1, 64, window=70, B=1, segments=True),
    AttentionCase("several_blocks_full", 300, 331, 2, 1, 64, B=1),
)


def inputs(case: AttentionCase, dtype: DTypeLike = "float32", seed: int = 0) -> tuple[dict, dict]:
    """Numpy arguments of `attention`: (q, k, v by name in `dtype`, positions and segments by name)."""
    rng = np.random.default_rng(seed)
    B, T, S = case.B, case.T, case.S
    shapes = {
        "q_BTNH": (B, T, case.N, case.H),
        "k_BSKH": (B, S, case.K, case.H),
        "v_BSKH": (B, S, case.K, case.H),
    }
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    positions = {}
    if case.segments:
        positions["segment_k_BS"] = np.sort(rng.integers(0, 4, (B, S)), axis=1).astype(np.int32)
        positions["segment_q_BT"] = positions["segment_k_BS"][:, S - T :]
    if case.ring:
        written = rng.integers(S // 2, 2 * S, B)  # positions 0..written-1 were put at position mod S
        slot_S = np.arange(S)
        newest_BS = written[:, None] - 1 - (written[:, None] - 1 - slot_S[None]) % S
        positions["k_pos_BS"] = np.where(newest_BS >= 0, newest_BS, -1).astype(np.int32)
        positions["q_pos_BT"] = (written[:, None] - T + np.arange(T)[None]).astype(np.int32)
        positions["q_pos_BT"][0, -1] = -1  # padding
    return arrays, positions
