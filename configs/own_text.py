"""A small model for text of your own; train/README.md leads through it.

    python -m train.main --config=configs/own_text.py --config.data.path=TEXTS --workdir=runs/mine
    python -m train.main --config=configs/own_text.py --config.data.path=TEXTS --workdir=runs/mine \\
        --config.train.stages[0].steps=2000                                                  trains longer

TEXTS is a folder, a file or a glob. 1.3 M parameters, as in configs/demo.py. The learning rate is constant
and falls in the last third of the steps ("wsd").
"""

from configs import demo
from mixattn import ModelConfig
from train.experiment import CheckpointConfig, Stage, TrainConfig, TrainingExperiment
from train.optimizer import OptimizerConfig


def get_config() -> TrainingExperiment:
    model: ModelConfig = demo.get_config().model
    return TrainingExperiment(
        model=model,
        train=TrainConfig(
            stages=[Stage(name="text", steps=300, batch_size=4, seq_len=128)],
            optimizer=OptimizerConfig(schedule="wsd"),
            evaluate_every=50,
        ),
        checkpoints=CheckpointConfig(every=50),
    )
