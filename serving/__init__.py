"""Who runs when and where: requests, scheduling, pages, compiled programs.

from serving import Engine, EngineConfig, Request, Sampling
"""

from typing import TYPE_CHECKING, Any

from serving.config import EngineConfig, Limits
from serving.request import Output, Request, Sampling

if TYPE_CHECKING:
    from serving.engine.engine import Engine

__all__ = ["Engine", "EngineConfig", "Limits", "Output", "Request", "Sampling"]


def __getattr__(name: str) -> Any:
    # The engine imports jax, which policies and the simulator do without.
    if name == "Engine":
        from serving.engine.engine import Engine

        return Engine
    raise AttributeError(f"module 'serving' has no attribute {name!r}")
