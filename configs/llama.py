"""A small plain Llama for timing the training loop against PyTorch.

    NPROC=1 OMP_NUM_THREADS=1 taskset -c 3 python -m train.bench --config=configs/llama.py \\
        --torch=.venv-parity/bin/python

5.4 M parameters, batches of 4 rows of 256 tokens, float32, AdamW. Takes about five minutes on one
core and writes results/train_torch.csv. `make parity` sets up the other interpreter.
"""

from mixattn import ModelConfig
from train.experiment import Stage, TrainConfig, TrainingExperiment
from train.optimizer import OptimizerConfig


def get_config() -> TrainingExperiment:
    return TrainingExperiment(
        model=ModelConfig(
            n_layers=6, d_model=256, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=688, vocab_size=2048
        ),
        train=TrainConfig(
            stages=[Stage(steps=100, batch_size=4, seq_len=256)],
            optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4, clip=1.0),
            evaluate_every=0,
        ),
    )
