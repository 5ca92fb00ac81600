"""Uptraining a dense model into MA-Offset with three initializations of the shared K/V, two seeds.

    python -m train.experiments.uptrain --config=configs/uptrain.py --workdir=runs/uptrain --workers=4

The dense model is the standard wiring of configs/language.py after its 300 steps; each initialization then
takes 100 more. Two controls: the dense model trained further unchanged, and the new wiring from scratch.
Takes about eight minutes of one core.
Found (results/uptrain.csv): owner and mean are equal (4.106 and 4.108 nats per token) and within 0.04 of the
dense model trained further (4.069), with 5.3 times fewer KV bytes; random is 0.14 behind; from scratch 5.074.
"""

from configs import language
from train.experiments.uptrain import UptrainExperiment


def get_config() -> UptrainExperiment:
    config = UptrainExperiment(
        seeds=(0, 1), dense=language.experiment(), wiring="ma_offset", steps=100, lr_scale=0.5
    )
    # Evaluates on the whole validation part, as the final validation does.
    config.dense.train.evaluate_every, config.dense.train.evaluate_windows = 20, 0
    return config
