"""Small mixture models in checkpoints, and passes over them, for the tests here."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from mixattn import hf
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from serving import EngineConfig, Limits, Request, Sampling
from serving.offload.runtime.buffers import LayerBuffers, ResidentExperts, Slots
from serving.offload.runtime.checkpoint import MixtureCheckpoint, load_rest, locate
from serving.offload.runtime.engine import OffloadEngine
from serving.offload.runtime.resident import ResidentRunner
from serving.offload.runtime.sources import open_source
from serving.offload.runtime.stack import LayerRunner, OffloadStack
from serving.offload.runtime.streaming import StreamRunner
from serving.offload.store import PageSource

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


def source_of(checkpoint: MixtureCheckpoint) -> PageSource:
    return open_source(checkpoint).pages


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
    logprobs=2,
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


def greedy(seed: int, count: int, vocab: int = 97) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(1, vocab, count)]


REQUESTS = [
    Request(id=f"r{i}", client="a", prompt_ids=greedy(i, 3 + 4 * i),
            sampling=Sampling(max_tokens=3 + i % 3, temperature=0.0, logprobs=2))
    for i in range(5)
]  # fmt: skip


def resident(checkpoint: MixtureCheckpoint) -> ResidentRunner:
    return ResidentRunner(all_resident(checkpoint).arrays, checkpoint.config.n_layers)


def streaming(checkpoint: MixtureCheckpoint, **options: Any) -> StreamRunner:
    return StreamRunner(layer_buffers(checkpoint), {}, n_layers=checkpoint.config.n_layers, **options)


type Answer = tuple[list[int], list[float]]  # token ids and their logarithms of probability


class Engines:
    """Engines of the models here, each compiled once, whoever brings its experts."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[str, OffloadEngine] = {}
        self._resident: dict[str, list[Answer]] = {}

    def checkpoint(self, name: str) -> MixtureCheckpoint:
        return locate(saved(name, self._folder))

    def of(self, name: str) -> OffloadEngine:
        if name not in self._made:
            self._made[name] = engine(self.checkpoint(name))
        return self._made[name]

    def answers(self, name: str, runner: LayerRunner) -> list[Answer]:
        """What the model answers when `runner` brings its experts."""
        return answers(self.of(name), runner)

    def resident(self, name: str) -> list[Answer]:
        """What it answers with all experts in memory."""
        if name not in self._resident:
            self._resident[name] = self.answers(name, resident(self.checkpoint(name)))
        return self._resident[name]


def engine(
    checkpoint: MixtureCheckpoint, config: EngineConfig = CONFIG, rows: int = ROWS, **options: Any
) -> OffloadEngine:
    """An engine that has no experts until `answers` gives it a runner."""
    nobody = ResidentRunner({}, 0)
    model = load_rest(checkpoint)
    return OffloadEngine(model, OffloadStack(model, checkpoint, rows=rows, runner=nobody, **options), config)


def answers(engine: OffloadEngine, runner: LayerRunner) -> list[Answer]:
    stack = engine.programs.stack
    assert isinstance(stack, OffloadStack)
    stack.runner = runner
    outputs = engine.run(REQUESTS)
    return [(list(o.output_ids), [lp.logprob for lp in o.logprobs]) for o in outputs]


def teacher_forced(name: str, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Log-probabilities [T, V] over each sequence, of the whole model in one program, in float32."""
    config = dataclasses.replace(tiny(name), dtype="float32")
    graphdef, _ = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
    state = jax.tree.map(lambda x: x.astype(np.float32), nnx.split(network(name))[1])
    tokens_BT = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
    for row, sequence in zip(tokens_BT, sequences):
        row[: len(sequence)] = sequence
    logits_BTV = jax.jit(lambda state, tokens_BT: nnx.merge(graphdef, state)(tokens_BT))(state, tokens_BT)
    found = np.asarray(jax.nn.log_softmax(logits_BTV))
    return [logs[: len(sequence)] for logs, sequence in zip(found, sequences)]


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]
