"""Least counter first: VTC without the lift. A client hoards credit while idle; kept as a negative
control."""

from serving.fair.vtc import Vtc


class Lcf(Vtc):
    FIXED = ("lift",)

    def __init__(self, **options):
        super().__init__(lift="none", **options)
