"""One folder of checkpoints, and one engine per model, for all tests: compiling is most of their time."""

import pytest

from tests.serving.offload.runtime import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def engines(folder):
    return tiny.Engines(folder)
