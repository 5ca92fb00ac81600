"""Inference-friendly language models: configs, the model, generation, and checkpoints.

    from mixattn import ModelConfig, Transformer, PATTERNS, kv_bytes, generate

Names are imported on first use, so that a config or a memory estimate does not import jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixattn.generation import generate
    from mixattn.model import Transformer
    from mixattn.spec import PATTERNS, ModelConfig, kv_bytes

__version__ = "0.2.0"
__all__ = ["PATTERNS", "ModelConfig", "Transformer", "__version__", "generate", "kv_bytes"]

_HOME = {
    "ModelConfig": "mixattn.spec",
    "PATTERNS": "mixattn.spec",
    "Transformer": "mixattn.model",
    "generate": "mixattn.generation",
    "kv_bytes": "mixattn.spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mixattn' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
