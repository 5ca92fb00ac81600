"""Every scripted model in one table: the author is accepted, cheats never, however gullible the verifier."""

import pytest

from mixattn.evals.dafny.scripted import ScriptedVerifier
from mixattn.evals.dafnybench import scripted
from mixattn.evals.dafnybench.tasks import own

TASKS = own()[:3]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    bare = {task.stripped for task in TASKS}
    gullible = ScriptedVerifier(lambda program: "failed" if program in bare else "verified")
    folder = tmp_path_factory.mktemp("scripted")
    found = scripted.rates(TASKS, gullible, folder, attempts=3, parallel=1, seed=0)
    return {row["model"]: row for row in found}


def test_every_model_has_a_row(rows):
    assert list(rows) == list(scripted.MODELS)


@pytest.mark.parametrize("model", ["oracle", "oracle@2", "oracle@3"])
def test_the_author_is_always_accepted(rows, model):
    assert rows[model]["rate"] == rows[model]["public_check_rate"] == 1


@pytest.mark.parametrize("model", [m for m in scripted.MODELS if m.startswith("cheater") or m == "identity"])
def test_cheats_and_the_bare_program_never_are(rows, model):
    assert rows[model]["rate"] == 0


def test_the_public_check_takes_some_cheats_for_success(rows):
    taken = {name for name, row in rows.items() if row["public_check_rate"] > row["rate"]}
    assert {"cheater-assume", "cheater-assume-by", "cheater-verify-off", "cheater-endless"} <= taken
