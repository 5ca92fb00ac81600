"""The hierarchical roofline: how fast a computation can run on a processor when its data lie at another
level.

Level i is the fast memory and its processor (a device), level j the slow one (the host). Intensity is FLOPs
per byte read *at that level*, so one computation has one intensity per level. Source: MoE-Lightning (arXiv
2411.11217), section 3, equations 4 to 11. Figures are peaks and therefore bounds: the paper's own runs reach
a tenth to a half of them.
"""

from dataclasses import dataclass

from serving.offload.hardware import OffloadHardware
from serving.offload.shapes import MixtureShape


@dataclass(frozen=True)
class Rates:
    """Peaks of the two levels. FLOP and bytes a second.

    Attributes:
      near_flops, far_flops: processors of level i and of level j.
      near_Bps, far_Bps: their memories.
      link_Bps: from j to i.
    """

    near_flops: float
    far_flops: float
    near_Bps: float
    far_Bps: float
    link_Bps: float


def rates(hardware: OffloadHardware) -> Rates:
    """The peaks of a device and its host."""
    return Rates(
        hardware.device_flops,
        hardware.host_flops,
        hardware.device_Bps,
        hardware.host_Bps,
        hardware.link_Bps,
    )


def local(flops: float, Bps: float, intensity: float) -> float:
    """FLOP/s with the data at the processor's own level (equation 8)."""
    return min(flops, Bps * intensity)


def fetched(peak: Rates, near_intensity: float, far_intensity: float) -> float:
    """FLOP/s at level i with the data at level j (equation 7)."""
    return min(local(peak.near_flops, peak.near_Bps, near_intensity), peak.link_Bps * far_intensity)


def turning_point_1(peak: Rates) -> float:
    """Far intensity below which moving the data cannot pay: P_j / B_ji.

    Equation 9 has the intensity on both sides. Where the far processor is bound by its memory the condition
    is B_j >= B_ji and does not depend on intensity: see `stays_far`.
    """
    return peak.far_flops / peak.link_Bps


def turning_point_2(peak: Rates, near_intensity: float) -> float:
    """Far intensity above which the link no longer limits (equation 10)."""
    return local(peak.near_flops, peak.near_Bps, near_intensity) / peak.link_Bps


def balance_point(peak: Rates, near_intensity: float) -> float:
    """Far intensity at which near memory and link limit alike (equation 11)."""
    return peak.near_Bps * near_intensity / peak.link_Bps


def stays_far(peak: Rates, near_intensity: float, far_intensity: float) -> bool:
    """Whether computing where the data lie is at least as fast as moving them."""
    return local(peak.far_flops, peak.far_Bps, far_intensity) >= fetched(peak, near_intensity, far_intensity)


def ffn_intensity(shape: MixtureShape, tokens: float, *, all_experts: bool = True) -> float:
    """FLOPs per byte of one layer's experts over `tokens` tokens."""
    return shape.ffn_flops(tokens) / shape.ffn_bytes(tokens, all_experts=all_experts)


def attention_intensity(
    shape: MixtureShape,
    context_tok: float,
    *,
    as_published: bool = True,
    bytes_per_element: float | None = None,
) -> float:
    """FLOPs per byte of one query's attention, the mean over layers; it does not depend on the batch."""
    seen = shape.mean_seen_tok(context_tok)
    flops = shape.attention_flops(seen, as_published=as_published)
    return flops / shape.attention_bytes(seen, bytes_per_element)


def tokens_to_reach(shape: MixtureShape, intensity: float, *, most: int = 10**7) -> int | None:
    """The least batch whose experts have this intensity; None if no batch up to `most` does."""
    low, high = 0, most
    if ffn_intensity(shape, high) < intensity:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ffn_intensity(shape, middle) >= intensity else (middle, high)
    return high


def balance_tokens(flops: float, Bps: float, shape: MixtureShape) -> float:
    """Tokens at which reading a layer's experts takes as long as computing them: E b P / (2 k BW)."""
    config = shape.config
    return config.n_experts * shape.b * flops / (2 * config.experts_per_token * Bps)
