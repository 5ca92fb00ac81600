"""Small mixture models in checkpoints, and passes over them, for the tests here."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from mixattn import hf
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from serving import EngineConfig, Limits
from serving.engine.kv_layout import KVLayout
from serving.engine.programs import Programs
from serving.offload.pages import files
from serving.offload.runtime.buffers import LayerBuffers, ResidentExperts, Slots
from serving.offload.runtime.checkpoint import MixtureCheckpoint, load_rest, locate
from serving.offload.runtime.stack import OffloadStack
from serving.offload.store import FilePages, PackedPages, PageReader

BASE: dict[str, Any] = {
    "n_layers": 3, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 64, "vocab_size": 97,
    "n_experts": 4, "experts_per_token": 2, "max_positions": 128,
}  # fmt: skip
# name -> fields that differ: what the issue asks the runtime to be equal on
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd experts": {"n_experts": 5, "experts_per_token": 3, "n_layers": 2},
    "one layer": {"n_layers": 1},
    "windows": {"kv_wiring": "0_1s_2s", "window": 6},
    "shared": {"n_layers": 5, "kv_wiring": "0_1s_1s_0_1s", "window": 6},
    "tied": {"tied": True},
    "dense between": {"n_layers": 5, "dense_layers": (1, 3)},
    "dense first": {"n_layers": 4, "dense_layers": (0, 3)},
    "not gated": {"gated": False, "activation": "gelu"},
    "post norms": {"post_norms": True},
    "bfloat16": {"dtype": "bfloat16"},
}


def tiny(name: str) -> ModelConfig:
    return ModelConfig(**{**BASE, **MODELS[name]})


@functools.cache
def network(name: str) -> Transformer:
    return Transformer(tiny(name), rngs=nnx.Rngs(0))


def saved(name: str, folder: Path, **options: Any) -> Path:
    path = folder / name.replace(" ", "_")
    if not path.exists():
        hf.save(network(name), path, **options)
    return path


def source_of(checkpoint: MixtureCheckpoint, **options: Any) -> FilePages | PackedPages:
    pages = FilePages(PageReader(files(checkpoint.pages.values()), **options))
    return pages if checkpoint.packed else PackedPages(pages, checkpoint.slot_bytes)


ROWS, CHUNK = 2, 8
CONFIG = EngineConfig(
    max_slots=10,
    page_size=4,
    max_request_tok=64,
    prefill_rows=(1,),
    chunk_sizes=(CHUNK,),
    decode_rows=(2, 4, 6, 8),
    limits=Limits(chunk_tok=CHUNK, step_tok=16, decode_steps=(1,)),
    reuse=False,
)


def all_resident(checkpoint: MixtureCheckpoint) -> ResidentExperts:
    pages = sorted(checkpoint.pages)
    return ResidentExperts(pages, Slots(len(pages), checkpoint, source_of(checkpoint)))


def streamed(
    checkpoint: MixtureCheckpoint, stays: frozenset[tuple[int, int]] = frozenset()
) -> dict[int, list[int]]:
    E = checkpoint.config.n_experts
    return {i: [e for e in range(E) if (i, e) not in stays] for i in checkpoint.streams}


def layer_buffers(
    checkpoint: MixtureCheckpoint, stays: frozenset[tuple[int, int]] = frozenset(), *, poison: bool = True
) -> LayerBuffers:
    read = streamed(checkpoint, stays)
    slots = Slots(2 * max(map(len, read.values())), checkpoint, source_of(checkpoint), poison=poison)
    return LayerBuffers(read, slots, checkpoint.config.n_layers)


class Bench:
    """One model's stack with its programs compiled, and a state to run passes on."""

    def __init__(self, path: Path, runner: Any, rows: int = ROWS):
        self.checkpoint = locate(path)
        self.config = self.checkpoint.config
        model = load_rest(self.checkpoint)
        self.stack = OffloadStack(model, rows=rows, transposed=self.checkpoint.transposed, runner=runner)
        layout = KVLayout.of(self.config, CONFIG)
        self.programs = Programs(
            model,
            layout.cache(self.config, CONFIG),
            slots=CONFIG.max_slots,
            buckets=[(1, CHUNK)],
            max_steps=1,
            decode_rows=CONFIG.decode_rows,
            stack=self.stack,
        )
        self.programs.compile()


def greedy(seed: int, count: int, vocab: int = 97) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(1, vocab, count)]


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]
