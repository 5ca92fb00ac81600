"""The race detector of the TPU interpreter; the only place that knows where JAX hides its verdict."""

import contextlib

from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

# Eager copies: a copy that nobody waits for still happens, and races with whoever reads its target.
PARAMS = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")


@contextlib.contextmanager
def detected():
    """Yields a function that says whether a race was seen since."""
    pltpu.reset_tpu_interpret_mode_state()
    yield lambda: bool(interpret_pallas_call.races.races_found)
    pltpu.reset_tpu_interpret_mode_state()
