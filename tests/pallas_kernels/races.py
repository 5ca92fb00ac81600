"""The race detectors of the interpreters, and where JAX stores their results."""

import contextlib

from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

# Eager copies: a copy that no code waits for still runs, and races with readers of its target.
PARAMS = pltpu.InterpretParams(detect_races=True, dma_execution_mode="eager")


@contextlib.contextmanager
def detected():
    """Yields a function that returns whether a race was detected since."""
    pltpu.reset_tpu_interpret_mode_state()
    yield lambda: bool(interpret_pallas_call.races.races_found)
    pltpu.reset_tpu_interpret_mode_state()


@contextlib.contextmanager
def detected_on_gpu():
    """The same for Hopper; kernels called inside are interpreted."""
    gpu_callbacks.reset_gpu_interpret_mode_state()
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield lambda: bool(gpu_callbacks.get_races().races_found)
    gpu_callbacks.reset_gpu_interpret_mode_state()
