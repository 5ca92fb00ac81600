"""The configuration of a training run: data, model, stages, checkpoints.

Config files return a `TrainingExperiment`.
"""

from dataclasses import dataclass, field

from mixattn import ModelConfig
from mixattn.uptrain import INITS
from train.data import DataConfig
from train.mesh import MeshShape
from train.optimizer import OptimizerConfig
from train.step import ComputeConfig


@dataclass
class Stage:
    """One stage of training. Its length is given by exactly one of `steps`, `tokens` and `seconds`.

    Attributes:
      name: shown in metrics.csv.
      steps: length in optimizer steps.
      tokens: length in training tokens.
      seconds: takes as many steps as fit that time, judged by the fastest of five timed steps, within
        `min_steps` and `max_steps`. A resumed run keeps the number.
      min_steps, max_steps: bounds on the steps of a stage given in seconds.
      batch_size: rows per step, over all micro-batches and devices.
      seq_len: tokens per row; documents are packed into rows.
      rope_theta: RoPE base of this stage (0 = the model's).
      trainable: "all" parameters, or only those of "attention".
      path: corpus of this stage ("" = `data.path`).
      lr_scale: factor on the optimizer's peak learning rates.
    """

    name: str = "pretrain"
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    min_steps: int = 1
    max_steps: int = 1_000_000
    batch_size: int = 4
    seq_len: int = 256
    rope_theta: float = 0.0
    trainable: str = "all"
    path: str = ""
    lr_scale: float = 1.0

    def check(self) -> None:
        given = [n for n in ("steps", "tokens", "seconds") if getattr(self, n) > 0]
        if len(given) != 1:
            raise ValueError(
                f"stage {self.name!r} gives {given or 'none'} of steps, tokens, seconds; give exactly one"
            )
        if min(self.batch_size, self.seq_len) < 1:
            raise ValueError(
                f"stage {self.name!r} has batches of {self.batch_size} rows of {self.seq_len} tokens"
            )
        if not 1 <= self.min_steps <= self.max_steps:
            raise ValueError(
                f"stage {self.name!r} needs 1 <= min_steps <= max_steps;"
                f" they are {self.min_steps} and {self.max_steps}"
            )
        if self.trainable not in ("all", "attention"):
            raise ValueError(
                f"stage {self.name!r}: trainable is {self.trainable!r}; it must be 'all' or 'attention'"
            )


@dataclass
class TrainConfig:
    """How the model is trained.

    Attributes:
      seed: of the initial weights and of the order of the data.
      init_from: folder of an exported model to start from, rewired to this model's K/V wiring ("" = random
        initialization). Text is then tokenized with that model's tokenizer.
      kv_init: with `init_from`, how newly shared K/V are initialized (`mixattn.uptrain`): "mean", "owner" or
        "random".
      evaluate_every: steps between validations (0 = only at the end).
      evaluate_windows: windows per validation (0 = the whole split).
      must_beat: n-gram baseline that the final validation loss must beat: "unigram", "bigram", "trigram" or
        "none".
    """

    seed: int = 0
    init_from: str = ""
    kv_init: str = "mean"
    stages: list[Stage] = field(default_factory=lambda: [Stage(steps=100)])
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluate_every: int = 100
    evaluate_windows: int = 64
    must_beat: str = "none"

    def check(self) -> None:
        if not self.stages:
            raise ValueError("train.stages is empty; there is nothing to train")
        for stage in self.stages:
            stage.check()
            if stage.batch_size % self.compute.accumulate:
                raise ValueError(
                    f"stage {stage.name!r}: {stage.batch_size} rows do not split into"
                    f" {self.compute.accumulate} micro-batches"
                )
        if self.kv_init not in INITS:
            raise ValueError(f"train.kv_init is {self.kv_init!r}; it must be one of {', '.join(INITS)}")
        if self.must_beat not in ("none", "unigram", "bigram", "trigram"):
            raise ValueError(
                f"train.must_beat is {self.must_beat!r}; it must be none, unigram, bigram or trigram"
            )


@dataclass
class CheckpointConfig:
    """Which checkpoints are written and kept.

    Attributes:
      every: steps between checkpoints.
      keep_last: number of newest checkpoints to keep.
      keep_best: number of checkpoints with the lowest validation loss to keep in addition.
    """

    every: int = 100
    keep_last: int = 2
    keep_best: int = 1

    def check(self) -> None:
        if self.every < 1 or self.keep_last < 1:
            raise ValueError(
                f"checkpoints every {self.every} steps, {self.keep_last} kept: both must be at least 1"
            )


@dataclass
class TrainingExperiment:
    """A training run. `data`, `model` and `train` decide its result; `mesh` and `checkpoints` do not."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshShape = field(default_factory=MeshShape)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def check(self) -> None:
        if self.model.quantize:
            raise ValueError(
                f"model.quantize is {self.model.quantize!r}, and training needs weights that are no integers;"
                " train without it and round the result (python -m mixattn.hf convert --quantize=int8)"
            )
