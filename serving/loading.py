"""From a checkpoint to an engine: all weights in memory, or experts read while they are used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.config import EngineConfig

if TYPE_CHECKING:
    from serving.engine.engine import Engine


def load_engine(
    path: str | Path, config: EngineConfig, *, dtype: str | None = None, quantize: str = "", **options: Any
) -> "Engine":
    """The engine that `config` asks for.

    Args:
      dtype: of the weights in memory; None = the checkpoint's.
      quantize: see `mixattn.hf.load`.
      options: as `Engine`'s.

    Raises:
      ValueError: the checkpoint cannot be served so.
    """
    from mixattn import hf
    from serving.engine.engine import Engine

    if not config.offload.device_memory_gb:
        return Engine(hf.load(path, dtype=dtype, quantize=quantize)[0], config, **options)
    from serving.offload.runtime.front import open_offloaded

    if quantize or config.quantize:
        raise ValueError(
            f"quantize={quantize or config.quantize} is for models in memory; offload.quantize rounds the"
            f" experts of {path} as they are read"
        )
    stored = hf.read_config(path).dtype
    if dtype not in (None, stored):
        raise ValueError(f"dtype {dtype} is asked for, but {path} stores {stored}; offloaded experts stay so")
    return open_offloaded(path, config, **options).engine
