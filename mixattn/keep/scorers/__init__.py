"""The scorers by name."""

from mixattn.keep.scorers.expected import Expected
from mixattn.keep.scorers.h2o import HeavyHitters, MeanAttention
from mixattn.keep.scorers.key_diff import KeyDiff
from mixattn.keep.scorers.key_norm import KeyNorm
from mixattn.keep.scorers.protocol import Prompt, Scorer, made
from mixattn.keep.scorers.random_keys import RandomKeys
from mixattn.keep.scorers.recency import Recent, Streaming
from mixattn.keep.scorers.snapkv import SnapKV
from mixattn.keep.scorers.tova import Tova

SCORERS: dict[str, type[Scorer]] = {
    "h2o": HeavyHitters,
    "h2o_mean": MeanAttention,
    "snapkv": SnapKV,
    "tova": Tova,
    "streaming": Streaming,
    "recent": Recent,
    "knorm": KeyNorm,
    "keydiff": KeyDiff,
    "random": RandomKeys,
    "expected": Expected,
}

__all__ = ["SCORERS", "Prompt", "Scorer", "made"]
