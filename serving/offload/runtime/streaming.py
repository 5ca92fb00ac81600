"""Mode `stream`: every pass reads all experts that do not stay, by one of the schedules."""

from collections.abc import Mapping, Sequence

from serving.offload.lanes import MeasuredPass
from serving.offload.runtime.buffers import ExpertArrays, LayerBuffers
from serving.offload.runtime.passes import Around, StreamPass
from serving.offload.runtime.pieces import MicroBatch, Pieces


class StreamRunner:
    """Runs passes over two layer buffers.

    Args:
      resident: experts that stay.
      wrap: read the first layer's experts for the next pass at the end of one.
      keep: what must live as long as this.
    """

    def __init__(
        self,
        buffers: LayerBuffers,
        resident: Mapping[tuple[int, int], ExpertArrays],
        *,
        n_layers: int,
        schedule: str = "s1",
        wrap: bool = True,
        around: Around | None = None,
        keep: object = None,
    ):
        self._keep = keep  # owns the memory of the experts that stay
        self.buffers, self._resident, self._n_layers = buffers, resident, n_layers
        self.schedule, self._wrap, self._around = schedule, wrap, around
        self.measured: MeasuredPass | None = None

    def run(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> None:
        """One pass; `measured` holds its times afterwards.

        Raises:
          OSError, ValueError: reading failed. Nothing that was read is used again.
        """
        try:
            self.measured = self.new_pass(pieces, parts).run()
        except BaseException:
            self.buffers.reset()
            raise

    def new_pass(self, pieces: Pieces, parts: Sequence[MicroBatch]) -> StreamPass:
        return StreamPass(
            pieces,
            parts,
            self.buffers,
            self._resident,
            n_layers=self._n_layers,
            schedule=self.schedule,
            wrap=self._wrap,
            around=self._around,
        )
