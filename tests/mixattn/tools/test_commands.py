"""The console script lists every command of the project and runs it as `python -m` does."""

import importlib.util
import re

import pytest

from mixattn.tools.commands import COMMANDS, listing
from tests.test_imports import MODULES


def test_every_runnable_module_is_listed_and_every_listed_module_runs():
    runnable = {
        name.removesuffix(".__main__")
        for name, path in MODULES.items()
        if re.search(r'^if __name__ == "__main__":', path.read_text(), flags=re.M)
    } - {
        *("mixattn.tools.commands", "serving.http.template_worker", "serving.cluster.worker")
    }  # not for people to run
    assert runnable == {command.module for command in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_one_line(name):
    assert importlib.util.find_spec(COMMANDS[name].module)
    assert len(COMMANDS[name].summary) <= 80
    assert name in listing()


def test_a_command_runs_with_its_flags(run_module):
    done = run_module("mixattn.tools.commands", "spec", "--pattern=ma_offset", "--n_layers=8", "--json")
    assert done.returncode == 0
    assert '"pattern": "ma_offset"' in done.stdout


def test_an_unknown_command_is_one_sentence(run_module):
    done = run_module("mixattn.tools.commands", "dance")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'dance' is not one of spec, ")
    assert done.stderr.count("\n") == 1
