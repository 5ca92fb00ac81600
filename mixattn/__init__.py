"""What the model is, and how good it is.

    from mixattn import ModelConfig, Transformer, PATTERNS, kv_bytes, generate

Names load when first used, so that asking for a config or for bytes does not import jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixattn.generation import generate as generate
    from mixattn.model import Transformer as Transformer
    from mixattn.spec import ModelConfig as ModelConfig
    from mixattn.spec import kv_bytes as kv_bytes
    from mixattn.spec.patterns import PATTERNS as PATTERNS

__version__ = "0.2.0"

_HOME = {
    "ModelConfig": "mixattn.spec",
    "PATTERNS": "mixattn.spec",
    "Transformer": "mixattn.model",
    "generate": "mixattn.generation",
    "kv_bytes": "mixattn.spec",
}
__all__ = ["PATTERNS", "ModelConfig", "Transformer", "generate", "kv_bytes"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'mixattn' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
