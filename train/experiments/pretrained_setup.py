"""What `pretrained` measures: checkpoint, wirings, text, sizes."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from mixattn import ModelConfig, Transformer, hf
from mixattn.uptrain import rewire
from train.corpus import Part
from train.experiments import local_text, needles, teacher

# Beside the names of `mixattn.PATTERNS`. "windows": every layer slides; "sinks": and sees the first tokens.
PATTERN_OF = {"windows": "swa", "sinks": "swa", "pairs": "cla"}
EVERY_FIFTH = "every_fifth_full"


@dataclass
class PretrainedExperiment:
    """One checkpoint, several wirings.

    Attributes:
      checkpoint: folder of a Hugging Face checkpoint of Llama's kind, with its tokenizer.
      wirings: names of patterns, or "windows", "sinks", "pairs", "every_fifth_full".
      window, sinks: of sliding layers; sinks in the wiring "sinks" only.
      row_tok: tokens of every row, for fitting and for measuring.
      fit_rows, query_rows: rows of the fits; and of those, rows that shared layers' queries are fitted on.
      held_out_rows: rows of the held-out loss; half of them also hold needles.
      attention_strength, down_strength: see `recover.Strength`.
      budget_mib: KV budget for counting concurrent requests of 4,096 and 32,768 tokens.
      engine_rows, engine_tok: prompts of row_tok tokens served at once, and output tokens of each; 0 rows =
        not measured.
      name: of the result files.
    """

    checkpoint: str = "models/smollm2"
    wirings: tuple[str, ...] = ("standard", "windows")
    window: int = 64
    sinks: int = 4
    row_tok: int = 256
    fit_rows: int = 32
    query_rows: int = 4
    held_out_rows: int = 16
    attention_strength: float = 1e-3
    down_strength: float = 1e-2
    budget_mib: int = 4096
    engine_rows: int = 4
    engine_tok: int = 16
    name: str = "uptrain_smollm2"

    def check(self) -> None:
        if not self.wirings:
            raise ValueError("wirings is empty; there is nothing to run")
        if self.row_tok < 4 * self.window:
            raise ValueError(
                f"rows of {self.row_tok} tokens hold no needle at 3 windows of {self.window}; "
                "they must be at least 4 windows long"
            )
        for name in ("window", "fit_rows", "query_rows", "held_out_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


def wired(config: PretrainedExperiment, original: ModelConfig, wiring: str) -> ModelConfig:
    """The original's config with another wiring."""
    pattern = PATTERN_OF.get(wiring, wiring)
    if wiring == EVERY_FIFTH:
        pattern = "_".join(f"{i}" if i % 5 == 4 else f"{i}s" for i in range(original.n_layers))
    sinks = config.sinks if wiring == "sinks" else 0
    return dataclasses.replace(original, kv_wiring=pattern, window=config.window, sinks=sinks)


def rewired(config: PretrainedExperiment, original: Transformer, wiring: str) -> Transformer:
    """The original with another wiring, new K/V groups as the mean of their layers' K/V."""
    new = wired(config, original.config, wiring)
    return rewire(original, new.kv_wiring, window=new.window, sinks=new.sinks)


class Material:
    """Checkpoint and text, loaded when first needed."""

    def __init__(self, config: PretrainedExperiment, workdir: Path):
        self._config, self._workdir = config, workdir

    def model(self) -> Transformer:
        """The checkpoint, read anew: fits change a model in place."""
        return hf.load(self._config.checkpoint)[0]

    @functools.cached_property
    def original(self) -> Transformer:
        """Not to be changed."""
        return self.model()

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return hf.load_tokenizer(self._config.checkpoint)

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        return self.rows("validation", self._config.held_out_rows)

    @functools.cached_property
    def streams(self) -> teacher.StoredStreams:
        rows = self.rows("train", self._config.fit_rows)
        return teacher.store(self._workdir / "streams.npy", self.original, rows)

    def rows(self, part: Part, count: int) -> np.ndarray:
        """The first rows of one part of the split."""
        return local_text.rows(self.tokenizer, part, count, self._config.row_tok)

    def needles(self, distance_tok: int) -> needles.Needles:
        filler = self.held_out[: max(1, len(self.held_out) // 2)]
        return needles.plant(self.tokenizer, filler, distance_tok)
