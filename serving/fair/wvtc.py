"""Weighted VTC: service in the long run in proportion to the clients' weights (VTC section 4.3).

The bounds hold for service divided by weight, with U divided by the smallest weight.
"""

from collections.abc import Mapping
from fractions import Fraction

from serving.fair.vtc import Vtc
from serving.request import ClientId


class Wvtc(Vtc):
    def __init__(self, *, weights: Mapping[ClientId, float | Fraction], **options):
        """`weights`: the share of each client; 1 where not named."""
        super().__init__(weights=weights, **options)
