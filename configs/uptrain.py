"""Uptraining: a dense model brought into MA-Offset from three starts of the shared K/V, two seeds.

    python -m train.uptraining --config=configs/uptrain.py --workdir=runs/uptrain --workers=4

The dense model is the standard wiring of configs/language.py after its 300 steps; each start then takes 100
more. Beside the starts: the dense model going on as it is, and the new wiring from nothing.
"""

from configs import language
from train.uptraining import Uptraining


def get_config() -> Uptraining:
    config = Uptraining(seeds=(0, 1), dense=language.experiment(), wiring="ma_offset", steps=100, rate=0.5)
    # All of the validation part, so that the way and its end are the same measure.
    config.dense.train.evaluate_every, config.dense.train.evaluate_windows = 20, 0
    return config
