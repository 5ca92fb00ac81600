"""Strict from the first day: silent promotions and warnings are failures."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell that starts `make test` in the background makes it ignore Ctrl-C, and programs inherit that. Tests
# that press Ctrl-C in a program of their own need the default, which follows from a handled signal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A first call compiles, so an example's wall time says nothing; and CI must not depend on luck.
settings.register_profile(
    "house",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("house")


# Every compiled program maps memory, and Linux gives a process 65,530 mappings; beyond that XLA's next one
# crashes the process, as it did a worker that had gone through half the suite.
MAX_MAPPINGS = 20_000


def too_many_mappings() -> bool:
    maps = Path("/proc/self/maps")
    return maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPPINGS


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """After a file: drops compiled programs that nobody uses any more, where there are too many."""
    yield
    if too_many_mappings():
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def run_module():
    """Runs `python -m module args...` in the checkout, as a user would; returns the finished process."""
    from tests import forked

    return forked.run
