"""Uptraining: a dense model brought into MA-Offset from three starts of the shared K/V, two seeds.

    python -m train.experiments.uptrain --config=configs/uptrain.py --workdir=runs/uptrain --workers=4

The dense model is the standard wiring of configs/language.py after its 300 steps; each start then takes 100
more. Beside the starts: the dense model going on as it is, and the new wiring from nothing. About eight
minutes of one core.
Found (results/uptrain.csv): owner and mean are the same (4.106 and 4.108 nats a token) and within 0.04 of the
dense model going on (4.069), with 5.3 times fewer KV bytes; random is 0.14 behind; from nothing 5.074.
"""

from configs import language
from train.experiments.uptrain import Uptraining


def get_config() -> Uptraining:
    config = Uptraining(seeds=(0, 1), dense=language.experiment(), wiring="ma_offset", steps=100, rate=0.5)
    # All of the validation part, so that the way and its end are the same measure.
    config.dense.train.evaluate_every, config.dense.train.evaluate_windows = 20, 0
    return config
