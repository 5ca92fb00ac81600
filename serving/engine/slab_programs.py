"""Programs of an engine that evicts: those of every engine, and the four of `serving.engine.slab_steps`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mixattn.cache import FULL
from mixattn.model import Transformer
from mixattn.spec import ModelConfig
from serving.engine import slab_steps
from serving.engine.device_state import (
    PLAIN,
    DecodeBatch,
    DeviceState,
    PrefillBatch,
    SamplingFeatures,
    SettleBatch,
    SlabState,
    StepOutput,
    VotePlaces,
)
from serving.engine.programs import Programs
from serving.engine.slab_layout import SlabLayout
from serving.engine.stacks import Compiled, Name, ProgramSpec, Shapes, WholeStack, abstract
from serving.kvcache.slab_plan import NEVER


class SlabStack(WholeStack):
    """A whole stack whose listing has the programs of slabs too.

    Args:
      layout: of the slabs.
    """

    def __init__(self, model: Transformer, layout: SlabLayout):
        super().__init__(model)
        self.layout = layout

    def identity(self) -> Any:
        return super().identity(), self.layout.rules

    def listing(self, shapes: Shapes) -> Iterator[tuple[Name, ProgramSpec]]:
        assert isinstance(shapes, SlabPrograms)
        if self.layout.settings.full_decode:
            yield from super().listing(shapes)
        else:
            yield from (item for item in super().listing(shapes) if item[0][0] != "decode")
        rules, params, state = self.layout.rules, abstract(self._params), abstract(shapes.state())
        for decode, features in shapes.slab_decodes():
            args = (params, state, abstract(decode), jax.ShapeDtypeStruct((), np.int32))
            options = {"max_steps": shapes.max_steps, "features": features}
            shape = (len(decode.left_R), features)
            fixed = (self._network, rules)
            yield ("decode slabs", *shape), ProgramSpec(slab_steps.decode_slabs, fixed, args, options)
            yield ("decode exact", *shape), ProgramSpec(slab_steps.decode_exact, fixed[:1], args, options)
        if rules.votes:
            for batch, features in shapes.vote_prefills():
                name = ("prefill votes", *batch.tokens_RC.shape, features)
                options = {"features": features}
                vote_args = (params, state, abstract(batch))
                yield name, ProgramSpec(slab_steps.prefill_votes, (self._network, rules), vote_args, options)
        settle_args = (state, abstract(shapes.blank_settle()))
        yield ("settle",), ProgramSpec(slab_steps.settle, (self.config, rules), settle_args, {})

    def prefill_votes(
        self, compiled: Compiled, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        return compiled["prefill votes", *batch.tokens_RC.shape, features](self._params, state, batch)

    def decode_slabs(
        self,
        compiled: Compiled,
        state: DeviceState,
        batch: DecodeBatch,
        n: int,
        features: SamplingFeatures,
        *,
        exact: bool,
    ) -> tuple[DeviceState, StepOutput]:
        name = "decode exact" if exact else "decode slabs"
        return compiled[name, len(batch.left_R), features](self._params, state, batch, np.int32(n))


class SlabPrograms(Programs):
    """See the module.

    Args:
      slabs: the shapes of an empty `SlabState`. model_config: of the model.
    """

    PREFILLS, DECODES = 2, 3

    def __init__(self, *args: Any, slabs: SlabState, layout: SlabLayout, **options: Any):
        self._slabs, self.layout = slabs, layout
        super().__init__(*args, **options)
        assert isinstance(self.stack, SlabStack)
        self._slab_stack = self.stack

    @property
    def model_config(self) -> ModelConfig:
        return self.stack.config

    def fresh_state(self) -> DeviceState:
        """As its parent's, and slabs that no slot uses."""
        return dataclasses.replace(super().fresh_state(), kept=jax.tree.map(_zeros, self._slabs))

    def borrow(self, other: Programs) -> None:
        if not isinstance(other, SlabPrograms):
            raise ValueError("programs to share do not evict")
        shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), p._slabs) for p in (self, other)]
        if jax.tree.leaves(shapes[0]) != jax.tree.leaves(shapes[1]):
            raise ValueError("programs to share have slabs of other sizes")
        super().borrow(other)

    # ---- the batches to compile for ----

    def slab_decodes(self) -> Iterator[tuple[DecodeBatch, SamplingFeatures]]:
        for features in sorted({features._replace(prompt=False) for features in self.feature_sets}):
            for R in reversed(self.decode_rows):
                yield self.blank_slab_decode(R, features), features

    def vote_prefills(self) -> Iterator[tuple[PrefillBatch, SamplingFeatures]]:
        for batch, features in self.prefills():
            yield batch._replace(votes=self.blank_votes(len(batch.start_R))), features

    def blank_slab_decode(self, rows: int, features: SamplingFeatures = PLAIN) -> DecodeBatch:
        """A batch of padding rows; full pages are not read."""
        batch = self.blank_decode(rows, features)
        tables = {kind: table for kind, table in batch.tables.items() if kind != FULL.name}
        return batch._replace(tables=tables)

    def blank_decode(self, rows: int, features: SamplingFeatures = PLAIN) -> DecodeBatch:
        """A batch of padding rows, none of whose tokens is known."""
        return super().blank_decode(rows, features)._replace(known_RN=self.blank_known(rows))

    def blank_known(self, rows: int) -> np.ndarray:
        return np.full((rows, self.max_steps), -1, np.int32)

    def blank_votes(self, rows: int) -> VotePlaces:
        """Queries that vote on nothing."""
        nowhere = np.full(rows, self.vote_rows, np.int32)
        return VotePlaces(np.full(rows, NEVER, np.int32), np.zeros(rows, np.int32), nowhere, nowhere.copy())

    def blank_settle(self) -> SettleBatch:
        """A prompt of no tokens, to be filled in."""
        O = len(self.layout.owners)
        one = np.int32(0)
        moves = {
            kind: np.zeros((2, table.shape[1]), np.int32)
            for kind, table in self.blank_decode(1).tables.items()
            if kind != FULL.name
        }
        pages = self._table_pages[FULL.name]
        cuts = np.zeros((O, 3), np.int32)
        return SettleBatch(np.zeros(pages, np.int32), one, one, one, one, cuts, cuts.copy(), moves)

    @property
    def vote_rows(self) -> int:
        """Rows of votes; the first that does not exist is nowhere."""
        return max((len(votes) for votes in self._slabs.votes.values()), default=0)

    # ---- the calls ----

    def prefill_votes(
        self, state: DeviceState, batch: PrefillBatch, features: SamplingFeatures
    ) -> tuple[DeviceState, StepOutput]:
        return self._slab_stack.prefill_votes(self.compiled, state, batch, features)

    def settle(self, state: DeviceState, batch: SettleBatch) -> DeviceState:
        settled: DeviceState = self.compiled["settle",](state, batch)
        return settled

    def decode_slabs(
        self,
        state: DeviceState,
        batch: DecodeBatch,
        steps: int,
        features: SamplingFeatures,
        *,
        exact: bool = False,
    ) -> tuple[DeviceState, StepOutput]:
        """Steps of rows in slabs; `exact`: none of them ever evicts."""
        return self._slab_stack.decode_slabs(self.compiled, state, batch, steps, features, exact=exact)


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.numpy.zeros(x.shape, x.dtype)
