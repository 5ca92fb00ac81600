"""Quantised checkpoints are refused in one sentence: codes are no weights."""

from collections.abc import Mapping
from typing import Any

_ADVICE = "; load the model's unquantised weights, or a GGUF file of it"


def refuse_quantised(raw: Mapping[str, Any]) -> None:
    """Raises ValueError if config.json says that the weights are quantised (GPTQ, AWQ, FP8, int8 ...)."""
    for name in ("quantization_config", "compression_config"):
        settings = raw.get(name)
        if settings is None:
            continue
        if not isinstance(settings, Mapping):
            raise ValueError(f"{name} is {settings!r}; it must be an object")
        method = settings.get("quant_method") or _guess(settings) or "an unnamed method"
        bits = settings.get("bits") or settings.get("w_bit")
        shown = f"{method}, {bits} bits" if bits else f"{method}"
        raise ValueError(f"the weights are quantised ({name}: {shown}), which is not supported{_ADVICE}")


def refuse_codes(tensor: str, file: object, dtype: str) -> None:
    """Raises ValueError for a tensor whose type holds codes."""
    if dtype in _CODES:
        raise ValueError(f"tensor {tensor} of {file} has type {dtype}: quantised codes, not weights{_ADVICE}")


_CODES = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
_CODES |= {"F4", "F6_E2M3", "F6_E3M2"}


def _guess(settings: Mapping[str, Any]) -> str:
    flags = ("load_in_4bit", "_load_in_4bit", "load_in_8bit", "_load_in_8bit")
    return "bitsandbytes" if any(settings.get(flag) for flag in flags) else ""
