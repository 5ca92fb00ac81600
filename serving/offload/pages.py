"""Where each expert of a checkpoint lies: one page per layer and expert, in the checkpoint's own layout."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mixattn.hf.checkpoint_dir import TensorLocation, Tensors
from mixattn.hf.tensors import TensorPlace
from mixattn.spec import ModelConfig
from serving.offload.store import ExpertPage


def expert_pages(
    config: ModelConfig, tensors: Tensors, places: Callable[[str], TensorPlace]
) -> dict[tuple[int, int], ExpertPage]:
    """The page of each (layer, expert): gate (if gated), up, down.

    Matrices stay as they are stored: [in, out] in our layout, [out, in] where `places` says that they are
    transposed.

    Raises:
      ValueError: a tensor is missing or has another shape than the model's.
    """
    D, F = config.d_model, config.d_ff
    shapes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
    names = ("gate", "up", "down") if config.gated else ("up", "down")
    found: dict[tuple[int, int], ExpertPage] = {}
    for layer in range(config.n_layers):
        if config.has_experts(layer):
            located = [
                _rows(tensors, places(f"blocks.{layer}.ffn.{name}"), config.n_experts, shapes[name])
                for name in names
            ]
            found |= {(layer, expert): ExpertPage(row) for expert, row in enumerate(zip(*located))}
    return found


def _rows(tensors: Tensors, place: TensorPlace, experts: int, shape: tuple[int, int]) -> list[TensorLocation]:
    """The location of each expert's matrix."""
    for name in place.names:
        if name not in tensors:
            raise ValueError(f"tensor {name} is missing from the checkpoint; the model needs shape {shape}")
    stored = shape[::-1] if place.transpose else shape
    if place.stacked:
        rows = [tensors.location(name) for name in place.names]
    else:
        whole = tensors.location(place.names[0])
        step = whole.size // experts
        rows = [
            TensorLocation(whole.file, whole.offset + expert * step, whole.shape[1:], whole.dtype)
            for expert in range(experts if whole.shape[:1] == (experts,) else 1)
        ]
    for name, row in zip(place.names, rows):
        if row.shape != stored or len(rows) != experts:
            raise ValueError(
                f"tensor {name} has shape {tensors.shape(name)};"
                f" the model needs {experts} experts of {stored}"
            )
    return rows


def files(located: Iterable[ExpertPage]) -> set[Path]:
    """The files that hold the pages."""
    return {place.file for page in located for place in page.tensors}
