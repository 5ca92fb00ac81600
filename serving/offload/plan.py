"""Chooses how to run a mixture model that exceeds a device: batch, micro-batch, and what stays on the device.

For a batch that is given, a pass only speeds up with more resident experts, and nothing else depends on their
share, so the best share is the largest that device memory allows: no solver is needed. The search is over
micro-batch sizes and their number. With attention on the device a second share, of K/V, competes for the same
memory; the best pair is a corner of the region that both memories allow.

Source: MoE-Lightning (arXiv 2411.11217), section 4.2, equations 12 to 14, with the memory terms of its
artifact. Decode only, peak rates, FLOPs of attention as published: absolute figures are 2 to 10 times the
paper's own measurements.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from serving.offload.hardware import OffloadHardware
from serving.offload.shapes import MixtureShape

DEVICE_SHARE, HOST_SHARE = 0.86, 0.8  # of each memory; the rest is left to the runtime
WORKSPACE = 1.2  # of the experts' intermediate results during prefill


@dataclass(frozen=True)
class OffloadWorkload:
    """Attributes:
    prompt_tok: average prompt length; the maximum if prompts are padded.
    generate_tok: tokens generated for each request.
    """

    prompt_tok: float
    generate_tok: int

    def __post_init__(self) -> None:
        if self.prompt_tok < 1 or self.generate_tok < 2:
            raise ValueError(
                f"a prompt of {self.prompt_tok} and {self.generate_tok} generated tokens;"
                " a plan needs at least 1 and 2"
            )


@dataclass(frozen=True)
class OffloadPolicy:
    """Attributes:
    micro_batch, micro_batches: rows of a device program, and how many of them make a pass.
    resident: share of expert weights that stay on the device (r_w).
    device_attention: attention on the device, over K/V of which `kv_resident` (r_c) stay there.
    """

    micro_batch: int
    micro_batches: int
    resident: float
    device_attention: bool = False
    kv_resident: float = 0.0

    @property
    def batch(self) -> int:
        """Rows of a pass (N)."""
        return self.micro_batch * self.micro_batches


@dataclass(frozen=True)
class LayerSeconds:
    """What each part of the machine needs for one mixture layer of a pass; they overlap."""

    link: float
    device: float
    host: float

    @property
    def bound(self) -> float:
        """Seconds of the layer: those of its slowest part (equation 12)."""
        return max(self.link, self.device, self.host)

    @property
    def bottleneck(self) -> str:
        """The slowest part."""
        return max(("link", "device", "host"), key=lambda name: getattr(self, name))


class Infeasible(ValueError):
    """No policy fits; the message names the memory that is short."""


@dataclass(frozen=True)
class OffloadPlanner:
    """Prices policies for one model, machine and workload, and searches the best.

    Attributes:
      prefill_on_device: whether hidden states of a whole batch's prefill stay on the device, as in the
        artifact.
      all_experts: whether a micro-batch reads every expert, as the paper assumes; False = the expected
        distinct ones.
    """

    shape: MixtureShape
    hardware: OffloadHardware
    workload: OffloadWorkload
    prefill_on_device: bool = True
    all_experts: bool = False

    def __post_init__(self) -> None:
        self.hardware.check()

    @cached_property
    def _end_tok(self) -> float:
        """Context at the end of generation, for which memory and host attention are planned."""
        return self.workload.prompt_tok + self.workload.generate_tok

    @cached_property
    def _kv_bytes(self) -> float:
        """K/V of one sequence at its end, in the whole model."""
        return self.shape.kv_bytes(self._end_tok)

    @cached_property
    def _kv_layer_end(self) -> float:
        """K/V of one sequence at its end that one layer's attention reads; the mean over layers."""
        return self.shape.kv_tok_bytes * self.shape.mean_seen_tok(self._end_tok)

    @cached_property
    def kv_layer_bytes(self) -> float:
        """What one layer's attention reads of one sequence in the middle of generation."""
        middle_tok = self.workload.prompt_tok + self.workload.generate_tok / 2
        return self.shape.kv_tok_bytes * self.shape.mean_seen_tok(middle_tok)

    @cached_property
    def _kv_layer_prompt(self) -> float:
        """The same of the prompt alone."""
        return self.shape.kv_tok_bytes * self.shape.mean_seen_tok(self.workload.prompt_tok)

    @cached_property
    def host_attention_s(self) -> float:
        """One row's attention in one layer, on the host."""
        return self._row_attention_s(self.hardware.host_flops, self.hardware.host_Bps)

    @cached_property
    def device_attention_s(self) -> float:
        """One row's attention in one layer, on the device."""
        return self._row_attention_s(self.hardware.device_flops, self.hardware.device_Bps)

    def seconds(self, policy: OffloadPolicy) -> LayerSeconds:
        """Lane seconds of one mixture layer, the mean over layers where windows differ."""
        shape, machine = self.shape, self.hardware
        link_bytes = shape.layer_expert_bytes * (1 - policy.resident)
        device = self.experts_seconds(policy)
        host = 0.0
        if policy.device_attention:
            link_bytes += (1 - policy.kv_resident) * self.kv_layer_bytes * policy.batch
            device += policy.batch * self.device_attention_s
        else:
            host = policy.batch * self.host_attention_s
        return LayerSeconds(link_bytes / machine.link_Bps, device, host)

    def step_seconds(self, policy: OffloadPolicy) -> float:
        """One decode pass of all layers. Dense layers stream nothing."""
        layer = self.seconds(policy)
        mixture = self.shape.mixture_layers
        dense = self.shape.config.n_layers - mixture
        return mixture * layer.bound + dense * max(layer.host, self._dense_s(policy))

    def tokens_per_s(self, policy: OffloadPolicy) -> float:
        """Generated tokens a second while decoding; prefill is not counted."""
        generated = self.workload.generate_tok
        return policy.batch * generated / (self.step_seconds(policy) * (generated - 1))

    def experts_seconds(self, policy: OffloadPolicy) -> float:
        """All micro-batches through the experts of one layer, on the device."""
        shape, machine, mu = self.shape, self.hardware, policy.micro_batch
        moved = shape.ffn_bytes(mu, all_experts=self.all_experts) / machine.device_Bps
        return policy.micro_batches * max(shape.ffn_flops(mu) / machine.device_flops, moved)

    def _dense_s(self, policy: OffloadPolicy) -> float:
        shape, machine, mu = self.shape, self.hardware, policy.micro_batch
        weights = shape.matrices * shape.config.d_model * shape.config.dense_width
        seconds = max(2 * weights * mu / machine.device_flops, shape.b * weights / machine.device_Bps)
        return policy.micro_batches * seconds

    def _row_attention_s(self, flops: float, Bps: float) -> float:
        seen = self.shape.mean_seen_tok(self._end_tok)
        return max(self.shape.attention_flops(seen) / flops, self.shape.attention_bytes(seen) / Bps)

    def device_use(self, policy: OffloadPolicy) -> dict[str, float]:
        """Bytes of device memory by purpose, at the larger of prefill and decode."""
        shape, s, N, mu = self.shape, self.workload.prompt_tok, policy.batch, policy.micro_batch
        b, D, F = shape.b, shape.config.d_model, shape.config.d_ff
        replicas = self.hardware.devices
        k = shape.config.experts_per_token
        kv = policy.kv_resident * self._kv_bytes * N if policy.device_attention else 0.0
        buffered = 0.0
        if policy.device_attention:
            buffered = 2 * (1 - policy.kv_resident) * self._kv_layer_end * mu
        decode = 2 * b * D * N * replicas + kv + buffered
        residual = b * D * N * s if self.prefill_on_device else 0.0
        prefill = replicas * (2 * b * D * mu * s + residual) + 2 * self._kv_layer_prompt * mu
        if policy.device_attention:
            prefill += kv
        workspace = WORKSPACE * b * mu * s * (k * D * replicas + 3 * k * F)
        return {
            "attention and dense weights": shape.resident_bytes,
            "resident experts": policy.resident * shape.mixture_layers * shape.layer_expert_bytes,
            "two layer buffers": 2 * (1 - policy.resident) * shape.layer_expert_bytes,
            "hidden states and K/V": max(decode, prefill),
            "workspace": workspace,
        }

    def host_use(self, policy: OffloadPolicy) -> dict[str, float]:
        """Bytes of host memory by purpose."""
        shape, s, N = self.shape, self.workload.prompt_tok, policy.batch
        streamed = (1 - policy.resident) * shape.layer_expert_bytes
        return {
            "experts": streamed * shape.mixture_layers,
            "pinned staging": 2 * streamed,
            "K/V": (1 - policy.kv_resident) * self._kv_bytes * N,
            "hidden states": shape.b * shape.config.d_model * N * s * self.hardware.devices,
        }

    def fit(self, micro_batch: int, micro_batches: int, *, device_attention: bool = False) -> OffloadPolicy:
        """The fastest policy of this batch.

        Raises:
          Infeasible: none fits; the message says which memory is short.
        """
        empty = OffloadPolicy(micro_batch, micro_batches, 0.0, device_attention)
        if device_attention:
            return self._fit_two_shares(empty)
        slack, need = self._slack(empty)
        full = dataclasses.replace(empty, resident=1.0)
        slack_full, need_full = self._slack(full)
        most = _largest_share(slack, slack_full)
        least = 1 - _largest_share(need_full, need)
        if most < 0:
            raise self._short("device", empty)
        if least > 1 or least > most:
            raise self._short("host", dataclasses.replace(empty, resident=max(0.0, most)))
        return dataclasses.replace(empty, resident=most)

    def _slack(self, policy: OffloadPolicy) -> tuple[float, float]:
        """Bytes left in device and in host memory; negative if too little."""
        device, host = self.device_use(policy), self.host_use(policy)
        return (
            DEVICE_SHARE * self.hardware.device_bytes - sum(device.values()),
            HOST_SHARE * self.hardware.host_bytes - sum(host.values()),
        )

    def _short(self, memory: str, policy: OffloadPolicy) -> Infeasible:
        on_device = memory == "device"
        use = sum((self.device_use(policy) if on_device else self.host_use(policy)).values())
        size = self.hardware.device_bytes if on_device else self.hardware.host_bytes
        share = DEVICE_SHARE if on_device else HOST_SHARE
        return Infeasible(
            f"{policy.micro_batches} micro-batches of {policy.micro_batch} need {use / 2**30:.2f} GiB"
            f" of {memory} memory; {share:.0%} of {size / 2**30:.2f} GiB may be used,"
            f" and at least {use / share / 2**30:.2f} GiB would do"
        )

    def _fit_two_shares(self, empty: OffloadPolicy) -> OffloadPolicy:
        best: OffloadPolicy | None = None
        for resident, kv in self._corners(empty):
            policy = dataclasses.replace(empty, resident=resident, kv_resident=kv)
            if best is None or self.seconds(policy).bound < self.seconds(best).bound:
                best = policy
        if best is None:
            raise self._short("device", empty)
        return best

    def _corners(self, empty: OffloadPolicy) -> Iterator[tuple[float, float]]:
        """Allowed shares at which two limits meet: 0 and 1 of each, and both memories."""
        zero = self._slack(empty)
        one_w = self._slack(dataclasses.replace(empty, resident=1.0))
        one_c = self._slack(dataclasses.replace(empty, kv_resident=1.0))
        memories = [(w - z, c - z, -z) for z, w, c in zip(zero, one_w, one_c)]
        limits = [(1.0, 0.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0), *memories]
        for (a, b, e), (c, d, f) in itertools.combinations(limits, 2):
            determinant = a * d - b * c
            if determinant:
                x, y = (e * d - b * f) / determinant, (a * f - e * c) / determinant
                inside = -1e-12 <= x <= 1 + 1e-12 and -1e-12 <= y <= 1 + 1e-12
                if inside and all(w * x + c * y >= z - 1.0 for w, c, z in memories):  # a byte, for rounding
                    yield min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


def _largest_share(at_none: float, at_all: float) -> float:
    """The largest share in [0, 1] at which a linear slack is not negative; below 0 if there is none."""
    if at_all >= 0:
        return 1.0
    return at_none / (at_none - at_all) if at_none >= 0 else -1.0
