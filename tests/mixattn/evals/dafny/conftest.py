"""The real verifier, or a skip that says why there is none."""

import pytest

from mixattn.evals.dafny.protocol import VerifierGone
from mixattn.evals.dafny.verifier import installed


@pytest.fixture(scope="session")
def verify():
    try:
        return installed()
    except VerifierGone as why:
        pytest.skip(str(why))
