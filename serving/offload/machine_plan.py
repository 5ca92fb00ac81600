"""Plans a run on the machine at hand from one number, the memory that it may use. Pure; no jax, no clock.

The roofline of `serving.offload.plan` is the paper's, from peak rates of two memories. This one prices what
the runtime really does with rates measured here: a layer's experts are read in `read` seconds while `compute`
seconds go by, an expert costs a fixed time for its weights and one more for every row. Memory is counted by
purpose, as the runtime allocates it.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mixattn.spec import ModelConfig
from mixattn.spec.config import itemsize
from serving.offload.plan import Infeasible
from serving.offload.shapes import MixtureShape, distinct_experts

type Mode = Literal["stream", "cache"]
MODES = ("stream", "cache")
GIB = 2**30
PROGRAM_BYTES = 96 << 20  # compiled programs, the compiler while it works, threads' stacks; measured
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512)  # of a micro-batch
PARTS = (1, 2, 3, 4, 6, 8)  # micro-batches
MAX_BLOCK = 128  # rows that an expert computes at once


@dataclass(frozen=True)
class MachineRates:
    """Attributes:
    read_Bps: experts from their source.
    expert_s, row_s: an expert's weights once, and each of its rows.
    """

    read_Bps: float
    expert_s: float
    row_s: float


@dataclass(frozen=True)
class MachineWorkload:
    """Attributes:
    requests: how many there are, and the rows of a pass at most.
    longest_tok: of one, prompt and outputs together.
    """

    requests: int
    longest_tok: int


@dataclass(frozen=True)
class MachinePlan:
    """How a run goes.

    Attributes:
      mode, schedule: `stream` reads all experts in every pass, `cache` those that are asked for.
      rows, parts: rows of a micro-batch, and micro-batches of a pass (N = rows x parts).
      slots: experts that fit in memory. Of them `resident` stay (stream), the others are two layer buffers.
      bytes: by purpose.
      read_s, compute_s, pass_s: predicted seconds of a decode pass with N rows, by lane and in all.
      read_bytes: read in such a pass; in mode `cache` the expected ones, were routing uniform.
    """

    mode: Mode
    schedule: str
    rows: int
    parts: int
    slots: int
    resident: int
    bytes: dict[str, int]
    read_s: float
    compute_s: float
    pass_s: float
    read_bytes: float

    @property
    def batch(self) -> int:
        return self.rows * self.parts

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.pass_s

    @property
    def bottleneck(self) -> str:
        """The busier lane."""
        return "read" if self.read_s > self.compute_s else "compute"


@dataclass(frozen=True)
class MachinePlanner:
    """Args:
    rest_bytes: weights beside the experts. slot_bytes: a buffer for one expert.
    kv_bytes: rows that run at once -> bytes of the K/V pools.
    staging_bytes: that pages pass through.
    moved_bytes: over the slow link for an expert; None = those of its weights.
    """

    config: ModelConfig
    rates: MachineRates
    workload: MachineWorkload
    memory_bytes: float
    rest_bytes: int
    slot_bytes: int
    kv_bytes: Callable[[int], int]
    staging_bytes: int = 0
    moved_bytes: int | None = None

    @property
    def _shape(self) -> MixtureShape:
        return MixtureShape(self.config)

    def best(self, mode: Mode | None = None, schedule: str | None = None) -> MachinePlan:
        """The plan with the most tokens a second.

        Raises:
          Infeasible: not even one row fits; says the least that does.
        """
        modes: tuple[Mode, ...] = ("stream", "cache") if mode is None else (mode,)
        found = [
            plan
            for rows in ROWS
            for parts in PARTS
            if rows * parts <= max(1, self.workload.requests) or rows * parts == 1
            for each in modes
            if (plan := self._plan(each, rows, parts, schedule)) is not None
        ]
        if not found:
            raise self._short(mode)
        return max(found, key=lambda plan: (plan.tokens_per_s, -plan.parts))

    def with_more(self, more_bytes: float) -> "MachinePlanner":
        return dataclasses.replace(self, memory_bytes=self.memory_bytes + more_bytes)

    def min_slots(self, mode: Mode | None) -> int:
        """Experts that must fit at least: two layers' to stream, two to cache."""
        every = self._shape.mixture_layers * self.config.n_experts
        return min(every, 2 * self.config.n_experts if mode == "stream" else 2)

    def fixed_bytes(self, rows: int, parts: int) -> dict[str, int]:
        """Everything but experts."""
        return {
            "weights beside the experts": self.rest_bytes,
            "K/V": self.kv_bytes(rows * parts),
            "hidden states and logits": self._workspace_bytes(rows, parts),
            "programs": PROGRAM_BYTES,
            **({"staging": self.staging_bytes} if self.staging_bytes else {}),
        }

    def _workspace_bytes(self, rows: int, parts: int) -> int:
        c, b = self.config, itemsize(self.config.dtype)
        tokens = max(rows, 64)  # a chunk of a prompt is a micro-batch too
        stream = parts * tokens * c.d_model * b * 4
        sorted_rows = 4 * (tokens * c.experts_per_token + MAX_BLOCK) * c.d_model * b
        return int(stream + sorted_rows + 3 * MAX_BLOCK * c.d_ff * b + 3 * tokens * c.vocab_size * 4)

    def _plan(self, mode: Mode, rows: int, parts: int, schedule: str | None) -> MachinePlan | None:
        _c, every = self.config, self._shape.mixture_layers * self.config.n_experts
        fixed = self.fixed_bytes(rows, parts)
        slots = min(every, int((self.memory_bytes - sum(fixed.values())) // self.slot_bytes))
        if slots < self.min_slots(mode):
            return None
        resident = self._resident(slots) if mode == "stream" else 0
        read_bytes, seconds = self._seconds(mode, rows, parts, slots, resident)
        read_s, compute_s, pass_s = seconds
        used = fixed | (
            {
                "resident experts": resident * self.slot_bytes,
                "two layer buffers": self.buffer_slots(resident) * self.slot_bytes,
            }
            if mode == "stream"
            else {"cache of experts": slots * self.slot_bytes}
        )
        name = schedule or ("s1" if parts > 1 else "s2")
        return MachinePlan(
            mode, name, rows, parts, slots, resident, used, read_s, compute_s, pass_s, read_bytes
        )

    def _resident(self, slots: int) -> int:
        """The most whole experts of the model that can stay beside two buffers for a layer's others."""
        every = self._shape.mixture_layers * self.config.n_experts
        if slots >= every:
            return every
        stay = 0
        while stay + 1 + self.buffer_slots(stay + 1) <= slots:
            stay += 1
        return stay

    def buffer_slots(self, resident: int) -> int:
        """Slots of two layer buffers, when so many experts stay, spread evenly over layers."""
        layers, E = self._shape.mixture_layers, self.config.n_experts
        return 2 * (E - resident // layers)

    def _seconds(
        self, mode: Mode, rows: int, parts: int, slots: int, resident: int
    ) -> tuple[float, tuple[float, float, float]]:
        c, layers, shape = self.config, self._shape.mixture_layers, self._shape
        N, every = rows * parts, layers * c.n_experts
        expert_bytes = shape.expert_bytes if self.moved_bytes is None else self.moved_bytes
        distinct = distinct_experts(c, rows)
        compute_s = c.n_layers * self._rest_s(N)
        compute_s += layers * (parts * distinct * self.rates.expert_s)
        compute_s += layers * N * c.experts_per_token * self.rates.row_s
        if mode == "stream":
            read_bytes = float((every - resident) * expert_bytes)
            read_s = read_bytes / self.rates.read_Bps
            first_s = read_s / max(1, layers)  # fills the pipe: the busier lane waits for one layer
            return read_bytes, (read_s, compute_s, max(read_s, compute_s) + min(first_s, compute_s) * 0.1)
        wide = distinct_experts(c, N)
        # Uniform routing; a step that asks for all of a layer finds none there, for the others came between.
        found = slots / every * (1 - wide / c.n_experts) if slots < every else 1.0
        read_bytes = layers * wide * (1 - found) * expert_bytes
        read_s = read_bytes / self.rates.read_Bps
        # Misses are read while hits are computed; without hits nothing overlaps but a layer's own experts.
        return read_bytes, (read_s, compute_s, max(read_s, compute_s) + 0.5 * min(read_s, compute_s))

    def _rest_s(self, N: int) -> float:
        """A layer's projections, at the rate of experts."""
        c = self.config
        weights = 2 * c.d_model * (c.n_heads + c.n_kv_heads) * c.head_dim
        share = weights / (self._shape.matrices * c.d_model * c.d_ff)
        return share * (self.rates.expert_s + N * self.rates.row_s)

    def _short(self, mode: Mode | None) -> Infeasible:
        fixed = self.fixed_bytes(1, 1)
        experts = self.min_slots(mode) * self.slot_bytes
        need = sum(fixed.values()) + experts
        parts = ", ".join(f"{name} {size / GIB:.3f}" for name, size in fixed.items())
        return Infeasible(
            f"{self.memory_bytes / GIB:.3f} GiB of memory, but the least that works is {need / GIB:.3f} GiB"
            f" ({parts}, {self.min_slots(mode)} experts {experts / GIB:.3f})"
        )


def spread(resident: int, streams: tuple[int, ...], n_experts: int) -> list[tuple[int, int]]:
    """`resident` whole experts, spread evenly over the layers: layer and expert of each."""
    order = [(layer, expert) for expert in range(n_experts) for layer in streams]
    return sorted(order[:resident])
