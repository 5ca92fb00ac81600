"""How an engine's programs run a stack of layers: as a whole, or in segments.

A shallow stack is one program per call, with several decode steps inside (`serving.engine.steps`). A deep one
would compile for long, so its layers are shared between segments (`serving.engine.segments`) and each decode
step is a chain of calls. Both give the same results up to how XLA fuses operations.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import Paged
from mixattn.model import Transformer
from pallas_kernels.paged import Pool
from serving.engine import segments, steps
from serving.engine.device_state import (
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SplitModel,
    StepOutput,
)
from serving.engine.segments import RowPlaces, Segment

MAX_WHOLE = 8  # layers of a stack that compiles fast enough as a whole

type Name = tuple[Any, ...]
type Lower = Callable[[], Any]  # -> jax.stages.Lowered
type Compiled = Mapping[Name, Callable[..., Any]]


class Shapes(Protocol):
    """The batches that programs are compiled for, as arrays of the right shapes."""

    max_steps: int

    def state(self) -> DeviceState: ...
    def decodes(self) -> Iterator[tuple[DecodeBatch, SamplingFeatures]]: ...
    def prefills(self) -> Iterator[tuple[PrefillBatch, SamplingFeatures]]: ...


class Stack(Protocol):
    """A model whose programs are listed, compiled elsewhere, and called by name."""

    def identity(self) -> Any:
        """Equal for stacks that can share compiled programs."""
        ...

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, Lower]]:
        """Each program's name and how to lower it, the slowest to compile first."""
        ...

    def prefill(
        self, compiled: Compiled, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]: ...

    def decode(
        self,
        compiled: Compiled,
        state: DeviceState,
        batch: DecodeBatch,
        n: int,
        features: SamplingFeatures,
    ) -> tuple[DeviceState, StepOutput]: ...


def make_stack(model: Transformer, layers_per_program: int = 0) -> Stack:
    """The stack for a model; `layers_per_program`: 0 = chosen by depth."""
    if layers_per_program == 0 and model.config.n_layers <= MAX_WHOLE:
        return WholeStack(model)
    size = layers_per_program or segments.best_size(model)
    return WholeStack(model) if size >= model.config.n_layers else SegmentedStack(model, size)


class WholeStack:
    """One program per call."""

    def __init__(self, model: Transformer):
        self._network, self._params = SplitModel.split(model)

    def identity(self) -> Any:
        return self._network

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, Lower]]:
        network, params, state = self._network, abstract(self._params), abstract(shapes.state())
        for decode, features in shapes.decodes():
            args = (network, params, state, abstract(decode), jax.ShapeDtypeStruct((), np.int32))
            options = {"max_steps": shapes.max_steps, "features": features}
            yield ("decode", len(decode.left_R), features), _lower(steps.decode, *args, **options)
        for prefill, features in shapes.prefills():
            args_ = (network, params, state, abstract(prefill))
            name = ("prefill", *prefill.tokens_RC.shape, features)
            yield name, _lower(steps.prefill, *args_, features=features)

    def prefill(
        self, compiled: Compiled, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        return compiled["prefill", *batch.tokens_RC.shape, features](self._params, state, batch)

    def decode(
        self,
        compiled: Compiled,
        state: DeviceState,
        batch: DecodeBatch,
        n: int,
        features: SamplingFeatures,
    ) -> tuple[DeviceState, StepOutput]:
        return compiled["decode", len(batch.left_R), features](self._params, state, batch, np.int32(n))


class SegmentedStack:
    """One program per kind of segment, and those before and after the layers."""

    def __init__(self, model: Transformer, size: int):
        self._config = model.config
        ends = copy.copy(model)
        ends.blocks = nnx.List([])
        self._ends, self._params = SplitModel.split(ends)
        self._every_token = segments.cut(model, size, last_only=False)
        self._last_token = segments.cut(model, size, last_only=True)

    def identity(self) -> Any:
        return self._config, self._ends, tuple(segment.kind for segment in self._last_token)

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, Lower]]:
        seen: dict[Name, Lower] = {}
        state = abstract(shapes.state())
        for prefill, features in shapes.prefills():
            seen |= self._prefill_listing(state, abstract(prefill), features)
        for decode, features in shapes.decodes():
            seen |= self._decode_listing(state, abstract(decode), features, shapes.max_steps)
        yield from sorted(seen.items(), key=lambda item: _COMPILE_ORDER.index(item[0][0]))

    def prefill(
        self, compiled: Compiled, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        pools = dict(state.cache.pools)
        batch = jax.device_put(batch)
        shape = batch.tokens_RC.shape
        x, *last = compiled["start prefill", *shape](
            self._params, batch.tokens_RC, batch.start_R, batch.count_R
        )
        places = RowPlaces(batch.tables, batch.start_R, batch.count_R)
        chain = self._every_token if features.prompt else self._last_token
        for segment in chain:
            narrow = x.shape[1] < shape[1]
            x = self._run(compiled, segment, x, pools, RowPlaces(batch.tables, *last) if narrow else places)
        rows, output = compiled["end prefill", *shape, features](self._params, x, state.rows, batch)
        return DeviceState(dataclasses.replace(state.cache, pools=pools), rows), output

    def decode(
        self,
        compiled: Compiled,
        state: DeviceState,
        batch: DecodeBatch,
        n: int,
        features: SamplingFeatures,
    ) -> tuple[DeviceState, StepOutput]:
        R, pools = len(batch.left_R), dict(state.cache.pools)
        batch = jax.device_put(batch)
        x, count_R, rows, out = compiled["start decode", R, features](self._params, state.rows, batch)
        left_R, step, live = batch.left_R, jnp.int32(0), None
        for _ in range(n):
            # Whether the step before left a live row is read while this one runs: at most one is in vain.
            before, places = live, RowPlaces(batch.tables, rows.position_B, count_R)
            for segment in self._every_token:
                x = self._run(compiled, segment, x, pools, places)
            live, x, count_R, step, rows, left_R, out = compiled["end decode", R, features](
                self._params, x, step, rows, left_R, out
            )
            if before is not None and not before:
                break
        rows = compiled["store", R, features](state.rows, batch.slot_R, rows)
        return DeviceState(dataclasses.replace(state.cache, pools=pools), rows), out

    # ---- inside ----

    def _run(
        self, compiled: Compiled, segment: Segment, x: jax.Array, pools: dict[int, Pool], places: RowPlaces
    ) -> jax.Array:
        owned = [pools[i] for i in segment.owned]
        borrowed = [pools[i] for i in segment.borrowed]
        name = ("segment", segment.kind, *x.shape[:2])
        x, written = compiled[name](segment.params, x, owned, borrowed, places)
        pools.update(zip(segment.owned, written))
        return x

    def _prefill_listing(
        self, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> dict[Name, Lower]:
        shape = batch.tokens_RC.shape
        args = (self._ends, abstract(self._params), batch.tokens_RC, batch.start_R, batch.count_R)
        listed = {("start prefill", *shape): _lower(segments.start_prefill, *args)}
        x = jax.ShapeDtypeStruct((*shape, self._config.d_model), self._config.dtype)
        chain = self._every_token if features.prompt else self._last_token
        places = RowPlaces(batch.tables, batch.start_R, batch.count_R)
        x = self._segments_listing(chain, x, state.cache, places, listed)
        end = (self._ends, abstract(self._params), x, state.rows, batch)
        listed["end prefill", *shape, features] = _lower(segments.end_prefill, *end, features=features)
        return listed

    def _decode_listing(
        self, state: DeviceState, batch: DecodeBatch, features: SamplingFeatures, max_steps: int
    ) -> dict[Name, Lower]:
        R, params = len(batch.left_R), abstract(self._params)
        options = {"max_steps": max_steps, "features": features}
        rows = jax.eval_shape(lambda rows, batch: steps.load_rows(rows, batch, features), state.rows, batch)
        out = jax.eval_shape(lambda: steps.empty_output(max_steps, R, features))
        x = jax.ShapeDtypeStruct((R, 1, self._config.d_model), self._config.dtype)
        one = jax.ShapeDtypeStruct((), jnp.int32)
        end = (self._ends, params, x, one, rows, batch.left_R, out)
        listed = {
            ("start decode", R, features): _lower(
                segments.start_decode, self._ends, params, state.rows, batch, **options
            ),
            ("end decode", R, features): _lower(segments.end_decode, *end, features=features),
            ("store", R, features): _lower(segments.store, state.rows, batch.slot_R, rows, features=features),
        }
        places = RowPlaces(batch.tables, batch.left_R, batch.left_R)
        self._segments_listing(self._every_token, x, state.cache, places, listed)
        return listed

    def _segments_listing(
        self,
        chain: Sequence[Segment],
        x: jax.ShapeDtypeStruct,
        cache: Paged,
        places: RowPlaces,
        listed: dict[Name, Lower],
    ) -> jax.ShapeDtypeStruct:
        """Adds the segments' programs; the shape of the residual stream after them."""
        for segment in chain:
            pools = [[cache.pools[i] for i in ids] for ids in (segment.owned, segment.borrowed)]
            args = (self._config, segment.kind, cache.kinds, abstract(segment.params), x, *pools, places)
            listed["segment", segment.kind, *x.shape[:2]] = _lower(segments.run_segment, *args)
            if segment.kind.last_owner is not None:
                x = jax.ShapeDtypeStruct((x.shape[0], 1, x.shape[2]), x.dtype)
        return x


_COMPILE_ORDER = ("segment", "end decode", "end prefill", "start decode", "store", "start prefill")


def abstract(tree: Any) -> Any:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _lower(function: Any, *args: Any, **static: Any) -> Lower:
    return lambda: function.lower(*args, **static)
