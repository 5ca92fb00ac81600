"""Machines, as the hierarchical roofline sees them: two memories, two processors and the link between them.

Sources: the constants of the MoE-Lightning artifact. Peak rates are those it plans with; measured ones are
1.3 to 4 times lower, which is what `efficiency` is for. GB of the artifact are GiB.
"""

import dataclasses
from dataclasses import dataclass

GIB = 2**30
TFLOP = 10**12


@dataclass(frozen=True)
class OffloadHardware:
    """A device with memory of its own beside a host.

    Attributes:
      device_bytes, host_bytes: sizes of the two memories; of all devices together.
      device_Bps, host_Bps: their bandwidths, bytes a second.
      link_Bps: bandwidth from host to device, and of its own from device to host.
      device_flops, host_flops: peak FLOP a second.
      devices: number of devices that share a layer (tensor parallel).
    """

    name: str
    device_bytes: float
    host_bytes: float
    device_Bps: float
    host_Bps: float
    link_Bps: float
    device_flops: float
    host_flops: float
    devices: int = 1

    def check(self) -> None:
        """Raises ValueError if a size or rate is not positive."""
        for field in dataclasses.fields(self):
            if field.name != "name" and not getattr(self, field.name) > 0:
                raise ValueError(
                    f"{field.name} of hardware {self.name} is {getattr(self, field.name)}; it must be above 0"
                )

    def efficiency(self, *, device: float = 1.0, host: float = 1.0, link: float = 1.0) -> "OffloadHardware":
        """The machine at these shares of its peak rates.

        Raises:
          ValueError: a share outside (0, 1].
        """
        for name, share in (("device", device), ("host", host), ("link", link)):
            if not 0 < share <= 1:
                raise ValueError(f"efficiency of the {name} is {share}; it must be above 0 and at most 1")
        return dataclasses.replace(
            self,
            device_Bps=self.device_Bps * device,
            device_flops=self.device_flops * device,
            host_Bps=self.host_Bps * host,
            host_flops=self.host_flops * host,
            link_Bps=self.link_Bps * link,
        )

    def times(self, devices: int) -> "OffloadHardware":
        """`devices` such devices on one host: their memory and rates add up, the link's does not."""
        return dataclasses.replace(
            self,
            name=f"{devices}x{self.name}",
            device_bytes=self.device_bytes * devices,
            device_Bps=self.device_Bps * devices,
            device_flops=self.device_flops * devices,
            devices=devices,
        )


def _gib(
    name: str, device: float, host: float, rates: tuple[float, float, float], tflops: tuple[float, float]
) -> OffloadHardware:
    device_Bps, host_Bps, link_Bps = (rate * GIB for rate in rates)
    device_flops, host_flops = (peak * TFLOP for peak in tflops)
    return OffloadHardware(
        name, device * GIB, host * GIB, device_Bps, host_Bps, link_Bps, device_flops, host_flops
    )


_L4 = dataclasses.replace(_gib("l4", 24, 192, (285, 76, 16), (104, 1.6)), host_bytes=197_880_360_960)
_T4 = _gib("t4", 15, 192, (300, 100, 16), (65, 0.8))
_T4_LARGE = dataclasses.replace(_T4, host_bytes=416 * GIB)

# l4: with the free host memory and measured host bandwidth of the artifact's example; t4: its presets.
# a100: the two devices of the paper's figure 10 (80 GB each, NVLink not modelled).
HARDWARE: dict[str, OffloadHardware] = {
    "l4": _L4,
    "t4": _T4,
    "2xt4": _T4_LARGE.times(2),
    "4xt4": _T4_LARGE.times(4),
    "2xa100": dataclasses.replace(
        OffloadHardware("2xa100", 160e9, 200e9, 4000e9, 100e9, 32e9, 600e12, 1.6e12), devices=2
    ),
}


def hardware(name: str) -> OffloadHardware:
    """The preset of that name.

    Raises:
      ValueError: no preset has it.
    """
    if name not in HARDWARE:
        raise ValueError(f"unknown hardware {name!r}; known: {', '.join(HARDWARE)}")
    return HARDWARE[name]
