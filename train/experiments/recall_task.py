"""Key-value recall: the smallest task that needs exact memory of a distant token.

A row shows `pairs` keys twice, in random order. The first time a key is followed by its value (a definition);
the second time it stands alone (a query), and the model must predict the value there. Answers are never fed
back, so a row does not reveal which values are still to be asked for. The distance of a query is counted from
the value's token, which a layer must attend to.

Tokens: values 0..values-1, then keys. Targets are values.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class RecallTask:
    """Sizes of the task.

    Attributes:
      pairs: keys per row, each with its own value.
      keys, values: number of distinct keys and values to draw from.
    """

    pairs: int = 16
    keys: int = 32
    values: int = 32

    def check(self) -> None:
        if not 0 < self.pairs <= min(self.keys, self.values):
            raise ValueError(f"{self.pairs} pairs do not fit {self.keys} keys and {self.values} values")

    @property
    def length(self) -> int:
        """Tokens per row."""
        return 3 * self.pairs

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values


def make_batch(task: RecallTask, count: int, seed: int, number: int) -> dict[str, np.ndarray]:
    """Draws batch `number` of `count` rows from the stream `seed`.

    Returns:
      tokens_BT, target_BT, loss_mask_BT (1 at queries) and segment_BT as in `train.data.Batch`, and
      distance_BT: distance from a query back to its value, 0 elsewhere.
    """
    rng = np.random.default_rng((seed, number))
    drawn = [_row(task, rng) for _ in range(count)]
    tokens, target, distance = (np.array(column, dtype=np.int32) for column in zip(*drawn))
    return {
        "tokens_BT": tokens,
        "target_BT": target,
        "loss_mask_BT": (distance > 0).astype(np.float32),
        "segment_BT": np.zeros_like(tokens),
        "distance_BT": distance,
    }


def _row(task: RecallTask, rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
    keys = rng.permutation(task.keys)[: task.pairs] + task.values
    values = rng.permutation(task.values)[: task.pairs]
    tokens: list[int] = []
    target: list[int] = []
    distance: list[int] = []
    defined: dict[int, int] = {}
    for pair in rng.permutation(np.repeat(np.arange(task.pairs), 2)):
        if pair not in defined:
            tokens += [keys[pair], values[pair]]
            target += [0, 0]
            distance += [0, 0]
            defined[pair] = len(tokens) - 1
        else:
            distance.append(len(tokens) - defined[pair])
            target.append(values[pair])
            tokens.append(keys[pair])
    return tokens, target, distance


def guess_accuracy(task: RecallTask, far: int, count: int = 2000, seed: int = 1) -> float:
    """Returns the accuracy of guessing at distances of at least `far`, by simulation.

    The guesser knows which values stand at least `far` tokens back, but not their keys. It draws one of them.
    """
    batch = make_batch(task, count, seed, 0)
    hits = []
    for tokens, distance in zip(batch["tokens_BT"], batch["distance_BT"]):
        for at in np.flatnonzero(distance >= far):
            candidates = np.sum(tokens[: at - far + 1] < task.values)
            hits.append(1 / candidates)
    return float(np.mean(hits))
