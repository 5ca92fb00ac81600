"""Key-value recall with heavy hitters: keys are asked for by a Zipf law, among noise.

A row first defines its pairs, scattered among noise and questions; then come noise and questions only. A
question is a key alone: the model must predict its value there, and answers are never fed back, so that the
definition is the only place to look. Key number r of a row (in an order drawn for the row) is asked with a
weight of r^-exponent: what was asked often will be asked again, which is what a heavy hitter is.

Tokens: values 0..values-1, then keys, then noise. Targets are values.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class ZipfTask:
    """Sizes of the task.

    Attributes:
      pairs: keys per row, each with its own value.
      keys, values, noise: distinct tokens of each kind to draw from.
      told: tokens of a row's first part, which holds the definitions. length: tokens of a row.
      ask: share of the other tokens that are questions.
      exponent: of the Zipf law.
    """

    pairs: int = 16
    keys: int = 32
    values: int = 32
    noise: int = 16
    told: int = 96
    length: int = 192
    ask: float = 0.4
    exponent: float = 1.0

    def check(self) -> None:
        if not 0 < self.pairs <= min(self.keys, self.values):
            raise ValueError(f"{self.pairs} pairs do not fit {self.keys} keys and {self.values} values")
        if not 2 * self.pairs <= self.told < self.length:
            raise ValueError(
                f"{self.pairs} pairs take {2 * self.pairs} tokens; they do not fit a first part of "
                f"{self.told} tokens in a row of {self.length}"
            )
        if not (self.noise >= 1 and 0 < self.ask <= 1 and self.exponent >= 0):
            raise ValueError(
                f"noise={self.noise} must be at least 1, ask={self.ask} in (0, 1], exponent={self.exponent} "
                "at least 0"
            )

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + self.noise


def make_batch(task: ZipfTask, count: int, seed: int, number: int) -> dict[str, np.ndarray]:
    """Draws batch `number` of `count` rows from the stream `seed`.

    Returns:
      tokens_BT, target_BT, loss_mask_BT (1 at questions) and segment_BT as in `train.data.Batch`, and
      rank_BT: the rank of the key that is asked for, from 1; 0 elsewhere.
    """
    rng = np.random.default_rng((seed, number))
    drawn = [_row(task, rng) for _ in range(count)]
    tokens, target, rank = (np.array(column, dtype=np.int32) for column in zip(*drawn, strict=True))
    return {
        "tokens_BT": tokens,
        "target_BT": target,
        "loss_mask_BT": (rank > 0).astype(np.float32),
        "segment_BT": np.zeros_like(tokens),
        "rank_BT": rank,
    }


def _row(task: ZipfTask, rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    keys = rng.permutation(task.keys)[: task.pairs] + task.values
    values = rng.permutation(task.values)[: task.pairs]
    weight = np.arange(1, task.pairs + 1) ** -task.exponent
    singles = task.told - 2 * task.pairs
    first = rng.permutation([*range(task.pairs), *[-1] * singles])
    defined = np.zeros(task.pairs, bool)
    tokens, target, rank = list[int](), list[int](), list[int]()
    for what in [*first, *[-1] * (task.length - task.told)]:
        if what >= 0:
            tokens += [int(keys[what]), int(values[what])]
            target, rank = [*target, 0, 0], [*rank, 0, 0]
            defined[what] = True
        elif rng.random() < task.ask and defined.any():
            chance = weight * defined
            asked = int(rng.choice(task.pairs, p=chance / chance.sum()))
            tokens.append(int(keys[asked]))
            target.append(int(values[asked]))
            rank.append(asked + 1)
        else:
            tokens.append(task.values + task.keys + int(rng.integers(task.noise)))
            target.append(0)
            rank.append(0)
    return tokens, target, rank
