"""The configuration of a training run: data, model, stages, checkpoints. Config files return a
`TrainingExperiment`."""

from dataclasses import dataclass, field

from mixattn import ModelConfig
from mixattn.uptrain import INITS
from train.data import Data
from train.mesh import MeshShape
from train.optimizer import Optimizer
from train.step import Compute


@dataclass
class Stage:
    """One stretch of training. Exactly one of `steps`, `tokens` and `seconds` says how long it is.

    Attributes:
      seconds: as many steps as fit that time, by the fastest of five steps timed first, but no fewer than
        `least_steps` and no more than `most_steps`. The choice is kept when the run goes on later.
      batch_size: rows a step, over all micro-batches and devices.
      rope_theta: 0 keeps the model's.
      trains: "all" parameters, or only those of "attention".
      path: a corpus of its own ("" = `data.path`).
      rate: factor on the optimizer's peak rates.
    """

    name: str = "pretrain"
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    least_steps: int = 1
    most_steps: int = 1_000_000
    batch_size: int = 4
    seq_len: int = 256
    rope_theta: float = 0.0
    trains: str = "all"
    path: str = ""
    rate: float = 1.0

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
        if not 1 <= self.least_steps <= self.most_steps:
            raise ValueError(
                f"stage {self.name!r}: least_steps {self.least_steps} > most_steps {self.most_steps}"
            )
        if self.trains not in ("all", "attention"):
            raise ValueError(f"stage {self.name!r} trains {self.trains!r}; it must be 'all' or 'attention'")


@dataclass
class Train:
    """What is done with data and model.

    Attributes:
      evaluate_every: steps between validations (0 = only at the end).
      evaluate_windows: how many windows these take (0 = all there are).
      gate: the n-gram entropy that the final validation loss must beat: "unigram", "bigram", "trigram" or
        "none".
      start: folder of an exported model to start from, brought into this model's wiring ("" = from nothing);
        text is then cut by that model's tokenizer.
      start_kv: what its new groups' K/V start from (`mixattn.uptrain`): "mean", "owner" or "random".
    """

    seed: int = 0
    start: str = ""
    start_kv: str = "mean"
    stages: list[Stage] = field(default_factory=lambda: [Stage(steps=100)])
    optimizer: Optimizer = field(default_factory=Optimizer)
    compute: Compute = field(default_factory=Compute)
    evaluate_every: int = 100
    evaluate_windows: int = 64
    gate: str = "none"

    def check(self) -> None:
        if not self.stages:
            raise ValueError("train.stages is empty; there is nothing to do")
        for stage in self.stages:
            stage.check()
            if stage.batch_size % self.compute.accumulate:
                raise ValueError(
                    f"stage {stage.name!r}: {stage.batch_size} rows do not split into"
                    f" {self.compute.accumulate} micro-batches"
                )
        if self.start_kv not in INITS:
            raise ValueError(f"train.start_kv is {self.start_kv!r}; it must be one of {', '.join(INITS)}")
        if self.gate not in ("none", "unigram", "bigram", "trigram"):
            raise ValueError(f"train.gate is {self.gate!r}; it must be none, unigram, bigram or trigram")


@dataclass
class Saving:
    """Steps between checkpoints, and how many are kept: the newest, and those of lowest validation loss."""

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
    """Everything a training run reads. `data`, `model`, `train` decide the result; the rest only the way."""

    data: Data = field(default_factory=Data)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: Train = field(default_factory=Train)
    mesh: MeshShape = field(default_factory=MeshShape)
    checkpoints: Saving = field(default_factory=Saving)
