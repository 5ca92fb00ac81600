"""Deep stacks in segments: one program per kind of segment, called once for each segment of layers.

The time to compile a program grows with the layers in it, and the layers of a deep stack are mostly alike.
So the stack is cut into segments of a few layers; segments of one kind (owners, readers, windows, mixtures in
the same order) share their programs, and what comes before and after the layers has programs of its own:

    prefill = start_prefill, run_segment ..., end_prefill
    decode  = start_decode, then for each step run_segment ..., end_decode; store at the end

Axes: R rows of a call, T tokens of each (C in a chunk, 1 in decode), D model width, N decode steps.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.cache import Kind, Paged, PageKind
from mixattn.cache.protocol import select_token, step_positions
from mixattn.model import Transformer, run_blocks
from mixattn.spec import Layer, ModelConfig
from pallas_kernels.paged import Pool
from serving.engine.device_state import (
    DecodeBatch,
    PrefillBatch,
    SamplingFeatures,
    SlotRows,
    SplitModel,
    StepOutput,
)
from serving.engine.steps import empty_output, finish_decode, finish_prefill, load_rows, store_rows

# How the choice of a segment length weighs one more call per step against one more layer to compile: some
# 0.2 ms in every step against some 0.3 s at a first start.
SEGMENT_WEIGHT = 1.1
MAX_SEGMENT = 6


class SegmentKind(NamedTuple):
    """What a segment's programs depend on beside shapes; hashable.

    Attributes:
      layers: how each layer attends; indices count from the segment's start, owners before it are -1, -2, ...
      mixtures: of each layer, whether its feed-forward is a mixture of experts.
      last_owner: the layer after which only each row's last token goes on, if it is in this segment.
    """

    graphdef: nnx.GraphDef[Any]
    tree: Any
    layers: tuple[Layer, ...]
    mixtures: tuple[bool, ...]
    last_owner: int | None

    def describe(self) -> str:
        """The same from run to run, unlike a hash: with the model's configuration it determines the rest."""
        return repr((self.layers, self.mixtures, self.last_owner))


@dataclass(frozen=True)
class Segment:
    """Consecutive layers of a model.

    Attributes:
      owned: owners among them, whose pools the segment writes.
      borrowed: owners before them that they read.
      start: index of the first layer.
      number: of its kind in the stack; names its programs. To hash the kind, which holds a module graph,
        would add a tenth to a small model's decode step.
    """

    kind: SegmentKind
    params: Sequence[jax.Array]
    owned: tuple[int, ...]
    borrowed: tuple[int, ...]
    start: int
    number: int = 0


class RowPlaces(NamedTuple):
    """Where each row of a step stands: page tables by kind, tokens held, and tokens of this step."""

    tables: Mapping[Kind, Any]
    start_R: Any
    count_R: Any


def cut(model: Transformer, size: int) -> list[Segment]:
    """Segments of `size` layers, the last one of what is left."""
    return [_segment(model, span) for span in _spans(model.config, size)]


def last_only(chain: Sequence[Segment], last_owner: int) -> list[Segment]:
    """The segments of steps in which each row goes on as its last token alone after layer `last_owner`.

    Where that is the last layer, as in a standard model, nothing is narrowed: it would save a thirtieth of a
    deep stack's prefill and cost one more program.
    """
    if last_owner == chain[-1].start + len(chain[-1].kind.layers) - 1:
        return list(chain)
    return [
        dataclasses.replace(segment, kind=segment.kind._replace(last_owner=last_owner - segment.start))
        if last_owner in segment.owned
        else segment
        for segment in chain
    ]


def numbered(*chains: Sequence[Segment]) -> list[list[Segment]]:
    """The same chains with each segment's number."""
    kinds = dict.fromkeys(segment.kind for chain in chains for segment in chain)
    numbers = {kind: number for number, kind in enumerate(kinds)}
    return [[dataclasses.replace(s, number=numbers[s.kind]) for s in chain] for chain in chains]


def best_size(model: Transformer) -> int:
    """The segment length that weighs compilation against calls best; longer if two are equal."""

    def cost(size: int) -> float:
        kinds = {_layers(model.config, span)[:2] for span in _spans(model.config, size)}
        return sum(len(layers) for layers, _ in kinds) + SEGMENT_WEIGHT * -(-model.config.n_layers // size)

    return min(range(MAX_SEGMENT, 0, -1), key=cost)


def _spans(config: ModelConfig, size: int) -> list[range]:
    return [range(start, min(start + size, config.n_layers)) for start in range(0, config.n_layers, size)]


def _layers(config: ModelConfig, span: range) -> tuple[tuple[Layer, ...], tuple[bool, ...], tuple[int, ...]]:
    """A segment's layers and mixtures, as in `SegmentKind`, and the owners before it that it reads."""
    layers = [config.layers[i] for i in span]
    borrowed = tuple(dict.fromkeys(layer.owner for layer in layers if layer.owner < span.start))
    local = {owner: -1 - i for i, owner in enumerate(borrowed)} | {i: i - span.start for i in span}
    alike = tuple(
        Layer(local[layer.index], local[layer.owner], layer.window, layer.sinks) for layer in layers
    )
    return alike, tuple(config.has_experts(i) for i in span), borrowed


def _segment(model: Transformer, span: range) -> Segment:
    layers, mixtures, borrowed = _layers(model.config, span)
    graphdef, state = nnx.split(nnx.List([model.blocks[i] for i in span]))
    params, tree = jax.tree.flatten(state)
    owned = tuple(i for i, layer in zip(span, layers) if layer.owns)
    return Segment(SegmentKind(graphdef, tree, layers, mixtures, None), params, owned, borrowed, span.start)


@functools.partial(jax.jit, static_argnames=("config", "kind", "page_kinds"), donate_argnames="owned")
def run_segment(
    config: ModelConfig,
    kind: SegmentKind,
    page_kinds: tuple[PageKind, ...],
    params: Sequence[jax.Array],
    x_RTD: jax.Array,
    owned: Sequence[Pool],
    borrowed: Sequence[Pool],
    places: RowPlaces,
) -> tuple[jax.Array, list[Pool]]:
    """The residual stream after the segment, and the pools it wrote."""
    blocks = nnx.merge(kind.graphdef, jax.tree.unflatten(kind.tree, params))
    owners = [layer.index for layer in kind.layers if layer.owns]
    pools = dict(zip(owners, owned)) | {-1 - i: pool for i, pool in enumerate(borrowed)}
    kv = Paged(pools, dict(places.tables), places.start_R, places.count_R, page_kinds)
    x_RTD, after, _ = run_blocks(config, blocks, kind.layers, x_RTD, kv, last_owner=kind.last_owner)
    assert isinstance(after, Paged)
    return x_RTD, [after.pools[i] for i in owners]


@functools.partial(jax.jit, static_argnames="network")
def start_prefill(
    network: SplitModel, params: Sequence[jax.Array], tokens_RC: Any, start_R: Any, count_R: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embedded chunks; and each row's start and count where only its last token goes on."""
    x_RTD = network.model(params).embed(tokens_RC, step_positions(start_R, tokens_RC.shape[1]))
    return x_RTD, start_R + jnp.maximum(count_R - 1, 0), jnp.minimum(count_R, 1)


@functools.partial(jax.jit, static_argnames=("network", "features"), donate_argnames="rows")
def end_prefill(
    network: SplitModel,
    params: Sequence[jax.Array],
    x_RTD: jax.Array,
    rows: SlotRows,
    batch: PrefillBatch,
    *,
    features: SamplingFeatures,
) -> tuple[SlotRows, StepOutput]:
    """Final norm, head and sampling behind each chunk."""
    model = network.model(params)
    if not features.prompt and x_RTD.shape[1] > 1:
        x_RTD = select_token(x_RTD, batch.count_R - 1)
    return finish_prefill(model, model.final_norm(x_RTD), rows, batch, features)


@functools.partial(jax.jit, static_argnames=("network", "max_steps", "features"))
def start_decode(
    network: SplitModel,
    params: Sequence[jax.Array],
    rows: SlotRows,
    batch: DecodeBatch,
    *,
    max_steps: int,
    features: SamplingFeatures,
) -> tuple[jax.Array, jax.Array, SlotRows, StepOutput]:
    """Embedded newest tokens, each row's count, the batch's rows, and an empty output."""
    loaded = load_rows(rows, batch, features)
    x_R1D = network.model(params).embed(loaded.token_B[:, None], loaded.position_B[:, None])
    count_R = (jnp.asarray(batch.left_R) > 0).astype(jnp.int32)
    return x_R1D, count_R, loaded, empty_output(max_steps, len(batch.left_R), features)


@functools.partial(
    jax.jit, static_argnames=("network", "features"), donate_argnames=("rows", "left_R", "out", "step")
)
def end_decode(
    network: SplitModel,
    params: Sequence[jax.Array],
    x_R1D: jax.Array,
    step: jax.Array,
    rows: SlotRows,
    left_R: jax.Array,
    out: StepOutput,
    *,
    features: SamplingFeatures,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, SlotRows, jax.Array, StepOutput]:
    """Samples one step and embeds its tokens for the next.

    Returns:
      Whether any row is live; the next x_R1D, count_R and step; rows, left_R and output.
    """
    model = network.model(params)
    hidden_RD = model.final_norm(x_R1D)[:, 0]
    rows, left_R, out = finish_decode(model, hidden_RD, step, rows, left_R, out, features)
    x_R1D = model.embed(rows.token_B[:, None], rows.position_B[:, None])
    live_R = left_R > 0
    return jnp.any(live_R), x_R1D, live_R.astype(jnp.int32), step + 1, rows, left_R, out


@functools.partial(jax.jit, static_argnames="features", donate_argnames="old")
def store(old: SlotRows, slot_R: Any, rows: SlotRows, *, features: SamplingFeatures) -> SlotRows:
    """See `store_rows`."""
    return store_rows(old, slot_R, rows, features)
