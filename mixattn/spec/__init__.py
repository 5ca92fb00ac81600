"""Model configs, K/V wirings, named patterns, and the memory they need. Imports no jax.

`python -m mixattn.spec --pattern=ma_offset --n_layers=24` draws a wiring and its memory.
"""

from mixattn.spec.config import ModelConfig, itemsize, kv_bytes, kv_bytes_by_owner
from mixattn.spec.patterns import PATTERNS
from mixattn.spec.wiring import Layer, parse_wiring

__all__ = ["PATTERNS", "Layer", "ModelConfig", "itemsize", "kv_bytes", "kv_bytes_by_owner", "parse_wiring"]
