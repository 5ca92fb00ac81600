"""How an engine's programs run a stack of layers: as a whole, or in segments.

As a whole it is one program per call, with several decode steps inside (`serving.engine.steps`). A deep stack
compiles for long. Where its start matters more than its speed, layers that are alike share the programs of
segments (`serving.engine.segments`), and each decode step is a chain of calls. Both give the same results up
to how XLA fuses operations.
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
from mixattn.spec import ModelConfig
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
type Compiled = Mapping[Name, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """A program before it is compiled.

    Attributes:
      function: jitted; called with `fixed`, then `args`, and `options`.
      fixed: hashable arguments that it is specific to.
      args: shapes in place of arrays.
      options: hashable keyword arguments that it is specific to.
    """

    function: Any
    fixed: tuple[Any, ...]
    args: tuple[Any, ...]
    options: Mapping[str, Any]

    def lower(self) -> Any:
        """Traces it: a `jax.stages.Lowered`."""
        return self.function.lower(*self.fixed, *self.args, **self.options)

    def describe(self) -> str:
        """Equal for equal programs of equally configured models. Does not cover sources and versions."""
        leaves, tree = jax.tree.flatten(self.args)
        shapes = [f"{leaf.dtype}{leaf.shape}" for leaf in leaves]
        fixed = [
            x.describe() if hasattr(x, "describe") else repr(x)
            for x in self.fixed
            if not isinstance(x, SplitModel)
        ]
        return "\n".join(
            [self.function.__name__, *fixed, repr(sorted(self.options.items())), str(tree), *shapes]
        )


class Shapes(Protocol):
    """The batches that programs are compiled for, as arrays of the right shapes."""

    max_steps: int

    def state(self) -> DeviceState: ...
    def decodes(self) -> Iterator[tuple[DecodeBatch, SamplingFeatures]]: ...
    def prefills(self) -> Iterator[tuple[PrefillBatch, SamplingFeatures]]: ...


class Stack(Protocol):
    """A model whose programs are listed, compiled elsewhere, and called by name."""

    config: ModelConfig

    def identity(self) -> Any:
        """Equal for stacks that can share compiled programs."""
        ...

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, ProgramSpec]]:
        """Each program's name and what it is, the slowest to compile first."""
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
    """The stack for a model; `layers_per_program`: 0 = all layers, -1 = chosen by depth."""
    size = layers_per_program or model.config.n_layers
    if size < 0:
        size = model.config.n_layers if model.config.n_layers <= MAX_WHOLE else segments.best_size(model)
    return WholeStack(model) if size >= model.config.n_layers else SegmentedStack(model, size)


class WholeStack:
    """One program per call."""

    def __init__(self, model: Transformer):
        self.config = model.config
        self._network, self._params = SplitModel.split(model)

    def identity(self) -> Any:
        return self._network

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, ProgramSpec]]:
        network, params, state = self._network, abstract(self._params), abstract(shapes.state())
        for decode, features in shapes.decodes():
            args = (params, state, abstract(decode), jax.ShapeDtypeStruct((), np.int32))
            options = {"max_steps": shapes.max_steps, "features": features}
            name = ("decode", len(decode.left_R), features)
            yield name, ProgramSpec(steps.decode, (network,), args, options)
        for prefill, features in shapes.prefills():
            prefill_args = (params, state, abstract(prefill))
            name = ("prefill", *prefill.tokens_RC.shape, features)
            yield name, ProgramSpec(steps.prefill, (network,), prefill_args, {"features": features})

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
        self.config = model.config
        ends = copy.copy(model)
        ends.blocks = nnx.List([])
        self._ends, self._params = SplitModel.split(ends)
        every = segments.cut(model, size)
        self._every_token, self._last_token = segments.numbered(
            every, segments.last_only(every, model.config.owners[-1])
        )

    def identity(self) -> Any:
        return self.config, self._ends, tuple(segment.kind for segment in self._last_token)

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, ProgramSpec]]:
        seen: dict[Name, ProgramSpec] = {}
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
        return steps.with_pools(state, pools, rows), output

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
        return steps.with_pools(state, pools, rows), out

    # ---- inside ----

    def _run(
        self, compiled: Compiled, segment: Segment, x: jax.Array, pools: dict[int, Pool], places: RowPlaces
    ) -> jax.Array:
        owned = [pools[i] for i in segment.owned]
        borrowed = [pools[i] for i in segment.borrowed]
        name = ("segment", segment.number, *x.shape[:2])
        x, written = compiled[name](segment.params, x, owned, borrowed, places)
        pools.update(zip(segment.owned, written))
        return x

    def _prefill_listing(
        self, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> dict[Name, ProgramSpec]:
        listed: dict[Name, ProgramSpec] = {}
        x = stream_shape(self.config, *batch.tokens_RC.shape)
        chain = self._every_token if features.prompt else self._last_token
        places = RowPlaces(batch.tables, batch.start_R, batch.count_R)
        x = self._segments_listing(chain, x, state.cache, places, listed)
        return listed | around_prefill(self._ends, self._params, state, batch, features, x)

    def _decode_listing(
        self, state: DeviceState, batch: DecodeBatch, features: SamplingFeatures, max_steps: int
    ) -> dict[Name, ProgramSpec]:
        x = stream_shape(self.config, len(batch.left_R), 1)
        listed = around_decode(self._ends, self._params, state, batch, features, max_steps, x)
        places = RowPlaces(batch.tables, batch.left_R, batch.left_R)
        self._segments_listing(self._every_token, x, state.cache, places, listed)
        return listed

    def _segments_listing(
        self,
        chain: Sequence[Segment],
        x: jax.ShapeDtypeStruct,
        cache: Paged,
        places: RowPlaces,
        listed: dict[Name, ProgramSpec],
    ) -> jax.ShapeDtypeStruct:
        """Adds the segments' programs; the shape of the residual stream after them."""
        for segment in chain:
            pools = [[cache.pools[i] for i in ids] for ids in (segment.owned, segment.borrowed)]
            fixed = (self.config, segment.kind, cache.kinds)
            args = (abstract(segment.params), x, *pools, places)
            name = ("segment", segment.number, *x.shape[:2])
            listed[name] = ProgramSpec(segments.run_segment, fixed, args, {})
            if segment.kind.last_owner is not None:
                x = jax.ShapeDtypeStruct((x.shape[0], 1, x.shape[2]), x.dtype)
        return x


_COMPILE_ORDER = ("segment", "end decode", "end prefill", "start decode", "store", "start prefill")


def stream_shape(config: ModelConfig, rows: int, tokens: int) -> jax.ShapeDtypeStruct:
    """The residual stream of so many rows and tokens of each."""
    return jax.ShapeDtypeStruct((rows, tokens, config.d_model), config.dtype)


def around_prefill(
    ends: SplitModel,
    params: Any,
    state: DeviceState,
    batch: PrefillBatch,
    features: SamplingFeatures,
    x: jax.ShapeDtypeStruct,
) -> dict[Name, ProgramSpec]:
    """The programs before and after the layers of a prefill; `x`: the residual stream behind the layers."""
    shape, params = batch.tokens_RC.shape, abstract(params)
    args = (params, batch.tokens_RC, batch.start_R, batch.count_R)
    return {
        ("start prefill", *shape): ProgramSpec(segments.start_prefill, (ends,), args, {}),
        ("end prefill", *shape, features): ProgramSpec(
            segments.end_prefill, (ends,), (params, x, state.rows, batch), {"features": features}
        ),
    }


def around_decode(
    ends: SplitModel,
    params: Any,
    state: DeviceState,
    batch: DecodeBatch,
    features: SamplingFeatures,
    max_steps: int,
    x: jax.ShapeDtypeStruct,
) -> dict[Name, ProgramSpec]:
    """The programs before and after the layers of a decode call of up to `max_steps` steps."""
    R, params = len(batch.left_R), abstract(params)
    only = {"features": features}
    options = {"max_steps": max_steps, **only}
    rows = jax.eval_shape(lambda rows, batch: steps.load_rows(rows, batch, features), state.rows, batch)
    out = jax.eval_shape(lambda: steps.empty_output(max_steps, R, features))
    one = jax.ShapeDtypeStruct((), jnp.int32)
    return {
        ("start decode", R, features): ProgramSpec(
            segments.start_decode, (ends,), (params, state.rows, batch), options
        ),
        ("end decode", R, features): ProgramSpec(
            segments.end_decode, (ends,), (params, x, one, rows, batch.left_R, out), only
        ),
        ("store", R, features): ProgramSpec(segments.store, (), (state.rows, batch.slot_R, rows), only),
    }


def abstract(tree: Any) -> Any:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
