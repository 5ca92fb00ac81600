"""The command's mistakes are one sentence; what it computes needs lm_eval (see test_lm.py)."""

import importlib.util

import pytest


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--model is missing"),
        (("--model={tmp}",), "holds no model"),
        (("--model={model}", "--length=512"), "RULER's tasks need 2048"),
        (("--model={model}", "--budgets=half"), "'half' is neither a number of keys nor a share"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(run_module, tmp_path, args, said):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    names = {"tmp": str(tmp_path), "model": str(tmp_path / "model")}
    done = run_module("serving.evals", "harness", *(arg.format(**names) for arg in args))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_lm_eval_it_says_how_to_get_it(run_module, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run_module("serving.evals", "harness", f"--model={tmp_path}")
    assert done.returncode == 2
    assert "make lm-eval" in done.stderr
