"""What the comparison with PyTorch refuses; the comparison itself needs torch (`python -m train.bench`)."""

import dataclasses
import sys

import pytest

from configs import llama
from train import bench_torch


def test_the_other_side_is_asked_only_for_what_it_does():
    bench_torch.check(llama.get_config())
    experiment = llama.get_config()
    experiment.model = dataclasses.replace(experiment.model, kv_wiring="swa")
    with pytest.raises(ValueError, match="plain Llama: only sizes may differ"):
        bench_torch.check(experiment)
    experiment = llama.get_config()
    experiment.train.optimizer.name = "muon"
    with pytest.raises(ValueError, match="this experiment with muon"):
        bench_torch.check(experiment)


def test_an_interpreter_without_torch_is_one_sentence(capfd):
    with (
        pytest.raises(ValueError, match="the PyTorch side ended with code 1"),
        bench_torch.sides(sys.executable, llama.get_config()),
    ):
        pass
    assert "No module named 'torch'" in capfd.readouterr().err
