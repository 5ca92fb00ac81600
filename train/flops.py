"""Model FLOPs of a training step, and the peak FLOP/s of the devices.

A multiply-add counts two. Each matmul weight is used once per token in the forward pass and twice in the
backward pass; each visible pair of query and key takes two inner products of the head size forward and twice
that backward. Recomputation, norms, softmax and the update are not counted: these are model FLOPs, not
hardware FLOPs (PaLM, arXiv 2204.02311, appendix B).
"""

import functools

import jax

from mixattn import ModelConfig, params

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets. CPUs have no such single figure.
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
    """FLOPs of one training step on `rows` rows of `length` tokens, one document per row."""
    return 3.0 * rows * (2 * weights(config) * length + sum(pairs(config, length)) * 4 * heads(config))


def weights(config: ModelConfig) -> int:
    """Weights that multiply one token: k experts of each mixture, and of the tables only the head."""
    counted = params.count(config)
    table = 0 if config.tied else config.vocab_size * config.d_model
    positions = config.max_positions + config.position_offset if config.positions == "learned" else 0
    return counted.active - counted.by_part.get("norms", 0) - table - positions * config.d_model


def heads(config: ModelConfig) -> int:
    """Width of all query heads of a layer."""
    return config.n_heads * config.head_dim


def pairs(config: ModelConfig, length: int) -> list[int]:
    """Visible (query, key) pairs of a row in each layer: sum over t of min(t + 1, window)."""
    windows = [min(layer.window or length, length) for layer in config.layers]
    return [window * (window + 1) // 2 + (length - window) * window for window in windows]


def peak(device_flops: float = 0.0) -> float | None:
    """Returns the peak FLOP/s of all devices together, or None if it is unknown.

    Args:
      device_flops: peak of one device; 0 looks it up in `PEAKS`.
    """
    one = device_flops or PEAKS.get(jax.devices()[0].device_kind)
    return None if one is None else one * jax.device_count()
