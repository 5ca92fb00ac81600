"""A stack of layers for the engine's programs whose experts are read during the pass.

All rows of a step, those that decode and those whose prompts are computed, share one pass over the weights.

Axes: R rows, T tokens of each, D model width, N query heads, K key/value heads, H head size.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from mixattn.cache import Paged
from mixattn.model import Transformer
from serving.engine import steps
from serving.engine.device_state import (
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SplitModel,
    StepOutput,
)
from serving.engine.segments import RowPlaces
from serving.engine.stacks import (
    Compiled,
    Name,
    ProgramSpec,
    Shapes,
    abstract,
    around_decode,
    around_prefill,
    stream_shape,
)
from serving.offload.runtime import programs
from serving.offload.runtime.checkpoint import MixtureCheckpoint
from serving.offload.runtime.pieces import MicroBatch, Pieces
from serving.offload.runtime.placement import Devices
from serving.offload.runtime.programs import OffloadLayer


class LayerRunner(Protocol):
    """Runs micro-batches through all layers, wherever the experts come from."""

    def run(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> None: ...


class OffloadStack:
    """A `serving.engine.stacks.Stack` without experts of its own.

    Args:
      model: of `checkpoint`, without experts (`serving.offload.runtime.checkpoint.load_rest`).
      rows: rows of a decode micro-batch.
      runner: brings the experts.
      devices: as for `Pieces`.
      guesses: compile the programs that guess a layer's experts while rows decode.
    """

    def __init__(
        self,
        model: Transformer,
        checkpoint: MixtureCheckpoint,
        *,
        rows: int,
        runner: LayerRunner,
        devices: Devices | None = None,
        guesses: bool = False,
    ):
        self._guesses = guesses
        self.config, self.rows, self.runner, self._devices = model.config, rows, runner, devices
        self._transposed, self._arrays = checkpoint.transposed, checkpoint.arrays
        ends = copy.copy(model)
        ends.blocks = nnx.List([])
        self._ends, self._params = SplitModel.split(ends)
        self.layers = programs.layers_of(model)

    def identity(self) -> Any:
        return (
            self.config,
            self._ends,
            tuple(layer.kind for layer in self.layers),
            self._transposed,
            self._arrays,
        )

    def prefill(
        self, compiled: Compiled, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        state, outputs = self.run_pass(compiled, state, [(batch, features)], None)
        return state, outputs[0]

    def decode(
        self,
        compiled: Compiled,
        state: DeviceState,
        batch: DecodeBatch,
        n: int,
        features: SamplingFeatures,
    ) -> tuple[DeviceState, StepOutput]:
        """One decode step; an engine with this stack asks for no more (`Limits.decode_steps`)."""
        state, outputs = self.run_pass(compiled, state, [], (batch, features))
        return state, outputs[0]

    def run_pass(
        self,
        compiled: Compiled,
        state: DeviceState,
        prefills: Sequence[tuple[PrefillBatch, SamplingFeatures]],
        decode: tuple[DecodeBatch, SamplingFeatures] | None,
    ) -> tuple[DeviceState, list[StepOutput]]:
        """One pass: every prefill batch is a micro-batch, and every `rows` rows that decode.

        Returns:
          The state, the outputs of the prefills, and one of all decode rows.
        """
        pieces = Pieces(compiled, self.layers, self._params, dict(state.cache.pools), self._devices)
        parts = [pieces.start_prefill(*prefill) for prefill in prefills]
        cuts = [] if decode is None else _cut(decode[0], self.rows)
        live = [bool(np.any(np.asarray(cut.left_R) > 0)) for cut in cuts]
        decoding = [
            pieces.start_decode(state.rows, cut, decode[1]) for cut, on in zip(cuts, live) if on and decode
        ]
        self.runner.run(pieces, [*parts, *decoding])
        rows, outputs = state.rows, []
        for part in parts:
            rows, output = pieces.end_prefill(part, rows)
            outputs.append(output)
        drawn, behind = [], iter(decoding)
        for on in live:
            out = None
            if on:
                rows, out = pieces.end_decode(next(behind), rows)
            drawn.append(out)
        if decode is not None:
            outputs.append(_joined(drawn, self.rows, decode[1]))
        return DeviceState(dataclasses.replace(state.cache, pools=pieces.pools), rows), outputs

    # ---- programs ----

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, ProgramSpec]]:
        seen: dict[Name, ProgramSpec] = {}
        state = abstract(shapes.state())
        for prefill, features in shapes.prefills():
            seen |= self._prefill_listing(state, abstract(prefill), features)
        for decode, features in shapes.decodes():
            batch = abstract(_cut(decode, self.rows)[0])
            seen |= self._decode_listing(state, batch, features)
        yield from seen.items()

    def _prefill_listing(
        self, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> dict[Name, ProgramSpec]:
        x = stream_shape(self.config, *batch.tokens_RC.shape)
        listed = around_prefill(self._ends, self._params, state, batch, features, x)
        places = RowPlaces(batch.tables, batch.start_R, batch.count_R)
        return listed | self._layers_listing(x, state.cache, places)

    def _decode_listing(
        self, state: DeviceState, batch: DecodeBatch, features: SamplingFeatures
    ) -> dict[Name, ProgramSpec]:
        x = stream_shape(self.config, len(batch.left_R), 1)
        listed = around_decode(self._ends, self._params, state, batch, features, 1, x)
        places = RowPlaces(batch.tables, batch.left_R, batch.left_R)
        return listed | self._layers_listing(x, state.cache, places)

    def _layers_listing(
        self, x: jax.ShapeDtypeStruct, cache: Paged, places: RowPlaces
    ) -> dict[Name, ProgramSpec]:
        listed: dict[Name, ProgramSpec] = {}
        for layer in {layer.number: layer for layer in self.layers}.values():
            listed |= self._layer_listing(layer, x, cache, places)
        return listed

    def _layer_listing(
        self, layer: OffloadLayer, x: jax.ShapeDtypeStruct, cache: Paged, places: RowPlaces
    ) -> dict[Name, ProgramSpec]:
        shape, config, kind, params = x.shape[:2], self.config, layer.kind, abstract(layer.params)
        fixed, at = (config, kind), (layer.number, *shape)
        count = places.count_R
        qkv = jax.eval_shape(lambda *args: programs.project(config, kind, *args), params, x, places.start_R)
        attend = programs.attend_owner if kind.layer.owns else programs.attend_reader
        at_host = (cache.pools[layer.owner], *qkv, dict(places.tables), places.start_R, count)
        listed: dict[Name, ProgramSpec] = {
            ("project", *at): ProgramSpec(programs.project, fixed, (params, x, places.start_R), {}),
            ("attend", *at): ProgramSpec(attend, (*fixed, cache.kinds), self._at_host(at_host), {}),
        }
        out = jax.ShapeDtypeStruct(qkv[0].shape, qkv[0].dtype)
        if not kind.mixture:
            return listed | {("dense", *at): ProgramSpec(programs.dense, fixed, (params, x, out), {})}
        args = (params, x, out, count)
        _, routed = jax.eval_shape(lambda *args: programs.route(config, kind, *args), *args)
        y, back, gate = routed.y_MD, routed.back_M, routed.gate_Xk
        listed["route", *at] = ProgramSpec(programs.route, fixed, args, {})
        listed["combine", *at] = ProgramSpec(programs.combine, fixed, (params, x, y, back, gate), {})
        b = programs.block_rows(len(back), config.n_experts)
        one = jax.ShapeDtypeStruct((), jnp.int32)
        if self._guesses and x.shape[1] == 1:
            listed["guess", *at] = ProgramSpec(programs.guess, fixed, (params, x, count), {})
        listed["expert", len(y)] = ProgramSpec(
            programs.expert, (config, self._transposed, b), (y, y, one, one, self._arrays), {}
        )
        return listed

    def _at_host(self, tree: Any) -> Any:
        """Shapes placed where attention runs."""
        if self._devices is None:
            return tree
        sharding = SingleDeviceSharding(self._devices.host)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _cut(batch: DecodeBatch, rows: int) -> list[DecodeBatch]:
    """The batch in micro-batches of `rows` rows; its own number of rows is a multiple.

    Rows that do not decode are stored nowhere: a prompt that ends in the same pass may be installed there.
    """
    nowhere = np.int32(1 << 30)  # no engine has so many slots
    batch = batch._replace(slot_R=np.where(np.asarray(batch.left_R) > 0, batch.slot_R, nowhere))
    return [
        jax.tree.map(lambda x, start=start: x[start : start + rows], batch)
        for start in range(0, len(batch.left_R), rows)
    ]


def _joined(drawn: Sequence[StepOutput | None], rows: int, features: SamplingFeatures) -> StepOutput:
    """The outputs of micro-batches side by side; those of padding alone produced nothing."""
    nothing = steps.empty_output(1, rows, features)
    filled = [jax.tree.map(np.asarray, nothing if out is None else out) for out in drawn]
    joined: StepOutput = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *filled)
    return joined
