"""What a pass does with one micro-batch in one layer: calls of compiled programs, in the order a pass asks.

A micro-batch is rows that decode, or chunks of prompts. The K/V pools are shared by all micro-batches; only
the lane that attends touches them.

Axes: R rows, T tokens of each, D model width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paged import Pool
from serving.engine.device_state import DecodeBatch, PrefillBatch, SamplingFeatures, SlotRows, StepOutput
from serving.engine.segments import RowPlaces
from serving.engine.stacks import Compiled
from serving.offload.runtime.buffers import ExpertArrays, RaceError
from serving.offload.runtime.placement import Devices
from serving.offload.runtime.programs import OffloadLayer, Routed

type FindExpert = Callable[[int, int], ExpertArrays]


@dataclasses.dataclass
class MicroBatch:
    """Attributes:
    batch, features: what to compute, and with which extras.
    x_RTD: the residual stream.
    places, host_places: where each row stands, on the device and where attention runs.
    decoding: of a decode batch, its rows and output so far.
    """

    batch: PrefillBatch | DecodeBatch
    features: SamplingFeatures
    x_RTD: jax.Array
    places: RowPlaces
    host_places: RowPlaces
    decoding: tuple[SlotRows, StepOutput] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of each."""
        return self.x_RTD.shape[0], self.x_RTD.shape[1]


class Pieces:
    """The programs of a pass, called by piece.

    Args:
      pools: owner -> its K/V; replaced as they are written.
      devices: where attention and the rest run; None = in the host's memory both.
    """

    def __init__(
        self,
        compiled: Compiled,
        layers: Sequence[OffloadLayer],
        ends: Sequence[jax.Array],
        pools: dict[int, Pool],
        devices: Devices | None = None,
    ):
        self._compiled, self._layers, self._ends, self._devices = compiled, layers, ends, devices
        self.pools: dict[int, Pool] = self.to_host(pools)

    def to_host(self, arrays: Any) -> Any:
        """Arrays where attention runs."""
        return arrays if self._devices is None else _moved(arrays, self._devices.host)

    def to_device(self, arrays: Any) -> Any:
        """Arrays where everything else runs."""
        return arrays if self._devices is None else _moved(arrays, self._devices.compute)

    # ---- before and after the layers ----

    def start_prefill(self, batch: PrefillBatch, features: SamplingFeatures) -> MicroBatch:
        batch = jax.device_put(batch)
        x_RTD, _, _ = self._compiled["start prefill", *batch.tokens_RC.shape](
            self._ends, batch.tokens_RC, batch.start_R, batch.count_R
        )
        places = RowPlaces(batch.tables, batch.start_R, batch.count_R)
        return MicroBatch(batch, features, x_RTD, places, self.to_host(places))

    def start_decode(self, rows: SlotRows, batch: DecodeBatch, features: SamplingFeatures) -> MicroBatch:
        batch = jax.device_put(batch)
        x_RTD, count_R, loaded, out = self._compiled["start decode", len(batch.left_R), features](
            self._ends, rows, batch
        )
        places = RowPlaces(batch.tables, loaded.position_B, count_R)
        return MicroBatch(batch, features, x_RTD, places, self.to_host(places), (loaded, out))

    def end_prefill(self, part: MicroBatch, rows: SlotRows) -> tuple[SlotRows, StepOutput]:
        end = self._compiled["end prefill", *part.shape, part.features]
        new_rows, output = end(self._ends, part.x_RTD, rows, part.batch)
        return new_rows, output

    def end_decode(self, part: MicroBatch, rows: SlotRows) -> tuple[SlotRows, StepOutput]:
        assert part.decoding is not None
        assert isinstance(part.batch, DecodeBatch)
        R, (loaded, out) = part.shape[0], part.decoding
        *_, new_rows, _, out = self._compiled["end decode", R, part.features](
            self._ends, part.x_RTD, jnp.int32(0), loaded, part.batch.left_R, out
        )
        return self._compiled["store", R, part.features](rows, part.batch.slot_R, new_rows), out

    # ---- a layer ----

    def project(self, i: int, part: MicroBatch) -> tuple[Any, ...]:
        """q, k and v."""
        layer = self._layers[i]
        program = self._compiled["project", layer.number, *part.shape]
        found: tuple[Any, ...] = program(layer.params, part.x_RTD, part.places.start_R)
        return found

    def attend(self, i: int, part: MicroBatch, qkv: tuple[Any, ...]) -> jax.Array:
        """What the queries read; an owner's K/V are written before."""
        layer, places = self._layers[i], part.host_places
        program = self._compiled["attend", layer.number, *part.shape]
        pool = self.pools[layer.owner]
        out_RTNH, written = program(pool, *qkv, dict(places.tables), places.start_R, places.count_R)
        if written is not None:
            self.pools[layer.owner] = written
        return jax.block_until_ready(out_RTNH)

    def dense(self, i: int, part: MicroBatch, out_RTNH: jax.Array) -> None:
        layer = self._layers[i]
        program = self._compiled["dense", layer.number, *part.shape]
        part.x_RTD = jax.block_until_ready(program(layer.params, part.x_RTD, out_RTNH))

    def route(self, i: int, part: MicroBatch, out_RTNH: jax.Array) -> "RoutedRows":
        layer = self._layers[i]
        program = self._compiled["route", layer.number, *part.shape]
        part.x_RTD, routed = program(layer.params, part.x_RTD, out_RTNH, part.places.count_R)
        return RoutedRows(routed)

    def guess(self, i: int, part: MicroBatch) -> list[int]:
        """The experts that layer i may ask for, by the stream as it is now."""
        layer = self._layers[i]
        program = self._compiled["guess", layer.number, *part.shape]
        chosen_E = program(layer.params, part.x_RTD, part.places.count_R)
        return [int(expert) for expert in np.flatnonzero(chosen_E)]

    def expert(self, part: MicroBatch, rows: "RoutedRows", expert: int, arrays: ExpertArrays) -> None:
        """One expert's rows of a micro-batch."""
        program = self._compiled["expert", len(rows.y_MD)]
        first, size = rows.first_E[expert], rows.size_E[expert]
        rows.y_MD = program(rows.y_MD, rows.x_MD, first, size, arrays)

    def combine(self, i: int, part: MicroBatch, rows: "RoutedRows") -> None:
        layer = self._layers[i]
        program = self._compiled["combine", layer.number, *part.shape]
        x_RTD = program(layer.params, part.x_RTD, rows.y_MD, rows.back_M, rows.gate_Xk)
        part.x_RTD = jax.block_until_ready(x_RTD)

    def feed_forward(self, i: int, part: MicroBatch, out_RTNH: jax.Array, find: FindExpert) -> list[int]:
        """The rest of a layer; returns the experts that it used."""
        if not self._layers[i].kind.mixture:
            self.dense(i, part, out_RTNH)
            return []
        rows = self.route(i, part, out_RTNH)
        used = rows.used()
        for expert in used:
            self.expert(part, rows, expert, find(i, expert))
        self.combine(i, part, rows)
        return used


def _moved(arrays: Any, device: jax.Device) -> Any:
    return jax.block_until_ready(jax.device_put(arrays, device))


class RoutedRows:
    """A micro-batch's rows by expert, with the sizes known on the host."""

    def __init__(self, routed: Routed):
        self.x_MD, self.y_MD = routed.x_MD, routed.y_MD
        self.back_M, self.gate_Xk = routed.back_M, routed.gate_Xk
        self.first_E, self.size_E = np.asarray(routed.first_E), np.asarray(routed.size_E)

    def used(self) -> list[int]:
        """Experts that have rows."""
        return [int(expert) for expert in np.flatnonzero(self.size_E)]


class Handover:
    """What lanes hand to each other: one entry per layer and micro-batch, taken once.

    Raises `RaceError` where a task takes what was not put.
    """

    def __init__(self, name: str):
        self._name, self._held = name, dict[tuple[int, int], Any]()

    def put(self, layer: int, part: int, value: Any) -> None:
        self._held[layer, part] = value

    def take(self, layer: int, part: int) -> Any:
        if (layer, part) not in self._held:
            raise RaceError(f"{self._name} of layer {layer}, micro-batch {part} is used before it is there")
        return self._held.pop((layer, part))
