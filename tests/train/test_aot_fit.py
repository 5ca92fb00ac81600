"""Compiling a training step for an absent chip tells whether it fits."""

import pytest

from configs import demo
from mixattn import params
from pallas_kernels import aot
from train import aot_fit


@pytest.mark.aot
def test_a_stage_holds_its_parameters_and_two_moments_of_each():
    if why := aot.missing("v5e"):
        pytest.skip(why)
    experiment = demo.get_config("fast")
    experiment.model.n_layers, experiment.model.kv_wiring = 1, "0s"
    experiment.train.optimizer.name = "adamw"
    (lower,) = aot_fit.training_steps(experiment, "v5e").values()
    lowered = lower()
    assert "tpu_custom_call" in lowered.as_text()
    found = aot.compiled_memory("v5e", lambda: lowered)
    weights = 4 * params.count(experiment.model).total
    assert found.fits
    assert 3 * weights <= found.arguments < 4 * weights
