"""Floating-point operations that the mathematics of a training step asks for, and the devices' peak.

Two for each multiply-add. A matmul's weight meets every token once forward and twice backward, a visible pair
of query and key takes two inner products of head size forward and twice that backward. Recomputation, norms,
softmax and the update are not counted: model FLOPs, not hardware FLOPs (PaLM, arXiv 2204.02311, appendix B).
"""

import functools

import jax

from mixattn import ModelConfig, params

# Dense FLOP/s of one device in bfloat16, by the vendors' data sheets; a processor has no such single figure.
PEAKS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


@functools.cache
def step(config: ModelConfig, rows: int, length: int) -> float:
    """Of one training step on `rows` rows of `length` tokens, each a document of its own."""
    return 3.0 * rows * (2 * weights(config) * length + sum(pairs(config, length)) * 4 * heads(config))


def weights(config: ModelConfig) -> int:
    """Weights that a token is multiplied with: of each mixture its k experts, of tables only the head."""
    counted = params.count(config)
    table = 0 if config.tied else config.vocab_size * config.d_model
    positions = config.max_positions + config.position_offset if config.positions == "learned" else 0
    return counted.active - counted.by_part.get("norms", 0) - table - positions * config.d_model


def heads(config: ModelConfig) -> int:
    """Width of all query heads of a layer."""
    return config.n_heads * config.head_dim


def pairs(config: ModelConfig, length: int) -> list[int]:
    """Visible pairs of query and key of a row, by layer: sum over t of min(t + 1, window)."""
    windows = [min(layer.window or length, length) for layer in config.layers]
    return [window * (window + 1) // 2 + (length - window) * window for window in windows]


def peak(asked: float = 0.0) -> float | None:
    """FLOP/s of all devices together; None where it is neither given nor known.

    Args:
      asked: of one device; 0 looks the device up.
    """
    one = asked or PEAKS.get(jax.devices()[0].device_kind)
    return None if one is None else one * jax.device_count()
