"""Checks whether a training step fits a chip by compiling it for the chip; needs no chip, weights or data.

    python -m train.aot_fit --config=configs/paper_stages.py --target=v6e,h100
    python -m train.aot_fit --config=configs/demo.py --json

Prints one line per stage of the experiment: parameters, optimizer state, gradients and activations of one
step on one device, at the stage's batch size and sequence length, with the experiment's optimizer,
micro-batches and remat. Needs the compilers of the aot-tpu / aot-cuda extras, as
`python -m mixattn.tools.aot_fit` does. The exit code is 1 if a stage does not fit.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh

from mixattn.tools import aot_fit, cli
from pallas_kernels import aot
from train import objective
from train.experiment import Stage, TrainingExperiment
from train.mesh import AXES
from train.prepare import compile_stage, master_config


def training_steps(experiment: TrainingExperiment, chip: str) -> dict[str, aot_fit.Lower]:
    """Returns the function that lowers each stage's step for `chip`, by stage name."""
    stages = experiment.train.stages
    return {stage.name: functools.partial(_lower, experiment, stage, chip) for stage in stages}


def _lower(experiment: TrainingExperiment, stage: Stage, chip: str) -> jax.stages.Lowered:
    one = np.array([aot.device(chip)]).reshape((1,) * len(AXES))
    mesh = Mesh(one, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    compiled = compile_stage(experiment, stage, mesh)
    params = jax.eval_shape(functools.partial(objective.init_params, master_config(experiment), 0))
    rows = stage.batch_size, stage.seq_len
    batch = {f"{name}_BT": jax.ShapeDtypeStruct(rows, jnp.int32) for name in ("tokens", "target", "segment")}
    batch["loss_mask_BT"] = jax.ShapeDtypeStruct(rows, jnp.float32)
    with aot.target(chip):
        state = jax.eval_shape(compiled.init_state, params)
        traced = compiled.train.trace(state, batch, jax.ShapeDtypeStruct((), jnp.int32))
        return traced.lower(lowering_platforms=(aot.CHIPS[chip].platform,))


def main() -> None:
    experiment = cli.config()
    if not isinstance(experiment, TrainingExperiment):
        raise ValueError(f"--config holds a {type(experiment).__name__}, not a TrainingExperiment")
    steps_of = functools.partial(training_steps, experiment)
    sys.exit(0 if aot_fit.report(flags.FLAGS.target, steps_of, as_json=flags.FLAGS.json) else 1)


if __name__ == "__main__":
    aot_fit.define_flags()
    cli.run(main)
