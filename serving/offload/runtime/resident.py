"""All experts in memory and nothing that overlaps: the plainest way to run the same programs.

The oracle of the runtime's tests, and the peer whose seconds its own overhead is measured against.
"""

from collections.abc import Mapping, Sequence

from serving.offload.runtime.buffers import ExpertArrays
from serving.offload.runtime.pieces import MicroBatch, Pieces


class ResidentRunner:
    """Args:
    experts: all of them, by layer and expert.
    """

    def __init__(self, experts: Mapping[tuple[int, int], ExpertArrays], n_layers: int):
        self._experts, self._n_layers = experts, n_layers

    def run(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> None:
        for i in range(self._n_layers):
            for part in parts:
                qkv = pieces.to_host(pieces.project(i, part))
                out = pieces.to_device(pieces.attend(i, part, qkv))
                pieces.feed_forward(i, part, out, lambda layer, expert: self._experts[layer, expert])
