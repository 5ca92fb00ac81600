"""Opens a mixture model's checkpoint: everything but the experts is loaded, the experts are only located."""

import re
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from mixattn import hf
from mixattn.hf import tensors, translate
from mixattn.hf.checkpoint_dir import Tensors
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from serving.offload.pages import expert_pages
from serving.offload.rounding import rounded_bytes
from serving.offload.store import ExpertPage

_EXPERT = re.compile(r"blocks\.(\d+)\.ffn\.(gate|up|down)")


@dataclass(frozen=True)
class MixtureCheckpoint:
    """Attributes:
    pages: (layer, expert) -> where the expert lies.
    transposed: whether matrices are stored as [out, in].
    rest_bytes: weights beside the experts.
    quantize: "int8": experts are rounded as they are read (`serving.offload.rounding`).
    """

    path: Path
    config: ModelConfig
    pages: dict[tuple[int, int], ExpertPage]
    transposed: bool
    rest_bytes: int
    quantize: str = ""

    @property
    def arrays(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arrays of an expert in a slot, as programs take them."""
        stored = next(iter(self.pages.values())).tensors
        if not self.quantize:
            return tuple(jax.ShapeDtypeStruct(place.shape, place.dtype) for place in stored)
        return tuple(
            array
            for channels, width in self._channels()
            for array in (
                jax.ShapeDtypeStruct((channels, width), np.int8),
                jax.ShapeDtypeStruct((channels,), np.float32),
            )
        )

    def _channels(self) -> list[tuple[int, int]]:
        """Output channels and width of each matrix."""
        shapes = [place.shape for place in next(iter(self.pages.values())).tensors]
        return [(a, b) if self.transposed else (b, a) for a, b in shapes]

    @property
    def streams(self) -> tuple[int, ...]:
        """The mixture layers, in order."""
        return tuple(sorted({layer for layer, _ in self.pages}))

    @property
    def page_bytes(self) -> int:
        """Bytes of a buffer that any one expert can be read into."""
        return max(max(page.buffer_bytes, page.packed_bytes) for page in self.pages.values())

    @property
    def slot_bytes(self) -> int:
        """Bytes of a buffer for any one expert as it is used."""
        return rounded_bytes(self._channels()) if self.quantize else self.page_bytes

    @property
    def staging_bytes(self) -> int:
        """Bytes that a page passes through before it is used: as stored, and its codes."""
        return self.page_bytes + self.slot_bytes if self.quantize else self.page_bytes * (not self.packed)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's matrices; all have the same shapes."""
        return next(iter(self.pages.values())).file_bytes

    @property
    def packed(self) -> bool:
        """Whether matrices lie where programs can use them as read, without a copy."""
        return all(page.usable_in_place for page in self.pages.values())


def locate(path: str | Path, quantize: str = "") -> MixtureCheckpoint:
    """Reads config and headers, no weights.

    Args:
      quantize: see `MixtureCheckpoint`.

    Raises:
      ValueError: no checkpoint directory, a dense model, a tensor that is missing, of another shape or dtype,
        or a shard that is cut short or missing.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no config.json; experts are read from a Hugging Face directory")
    config = hf.read_config(path)
    if not any(config.has_experts(i) for i in range(config.n_layers)):
        raise ValueError(
            f"{path} is a dense model ({config.n_experts} experts in {config.n_layers} layers);"
            " offloading reads experts, so serve it by serving.main"
        )
    found = hf.open_source(path).tensors()
    if not isinstance(found, Tensors):
        raise ValueError(f"{path} has no safetensors files; experts are read from those only")
    model_type = hf.open_source(path).config().get("model_type", hf.NATIVE)
    places = tensors.native_places if model_type == hf.NATIVE else translate.family_places(model_type, config)
    pages = expert_pages(config, found, places)
    layer = next(iter(pages))[0]
    stored = str(next(iter(pages.values())).tensors[0].dtype)
    if stored != config.dtype:
        raise ValueError(
            f"{path} stores experts as {stored}, its config says {config.dtype}; they are used as stored"
        )
    every = sum(found.location(name).size for name in found)
    rest = every - sum(page.file_bytes for page in pages.values())
    transposed = places(f"blocks.{layer}.ffn.up").transpose
    return MixtureCheckpoint(path, config, pages, transposed, rest, quantize)


def load_rest(checkpoint: MixtureCheckpoint) -> Transformer:
    """The model without its experts, which never are in memory together."""
    from serving.offload.runtime.programs import without_experts

    config = checkpoint.config

    def is_expert(path: str) -> bool:
        found = _EXPERT.fullmatch(path)
        return found is not None and config.has_experts(int(found[1]))

    model, _ = hf.load(checkpoint.path, skip=is_expert)
    return without_experts(model)
