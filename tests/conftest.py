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


# Files that take longest, by measurement. They go first, so that no worker ends with one of them alone.
LONGEST = (
    *("train/experiments/test_pretrained.py", "serving/offload/test_run.py", "train/test_main.py"),
    *("serving/offline/test_main.py", "serving/cluster/test_cluster.py", "serving/http/test_traps.py"),
    *("serving/offload/runtime/test_front.py", "train/test_interruption.py", "serving/engine/test_oracle.py"),
    *("serving/test_real_model.py", "train/test_mesh.py", "serving/cluster/test_chaos.py"),
    *("serving/engine/test_keep_oracle.py", "serving/http/test_keep.py", "serving/http/test_life.py"),
    *("mixattn/evals/arena/platform/test_app.py", "mixattn/evals/arena/platform/test_browser.py"),
    *("serving/metropolis/test_equality.py", "serving/chat/test_chat.py", "serving/engine/test_segments.py"),
    *("train/test_loop.py", "serving/fair/test_bounds.py", "train/test_border.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were found."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


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
