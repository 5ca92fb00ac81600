"""Key-value recall: the smallest task that needs exact memory of what stood far away.

A row shows `pairs` keys twice, in random order. The first time a key is followed by its value (a definition);
the second time it stands alone (a query), and the model must name the value there. Answers are never fed
back, so a row does not tell which values are still to come. The distance of a query is counted from the
value's token: what a layer must look back to.

Tokens: values 0..values-1, then keys. Targets are values.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Task:
    """Attributes:
    pairs: keys of a row, each with a value of its own.
    keys, values: to draw them from.
    """

    pairs: int = 16
    keys: int = 32
    values: int = 32

    def check(self) -> None:
        if not 0 < self.pairs <= min(self.keys, self.values):
            raise ValueError(f"{self.pairs} pairs do not fit {self.keys} keys and {self.values} values")

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return 3 * self.pairs

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values


def rows(task: Task, count: int, seed: int, number: int) -> dict[str, np.ndarray]:
    """Batch `number` of the stream `seed`.

    Returns:
      tokens_BT, target_BT, learn_BT (1 at queries) and segment_BT as in `train.data.Batch`, and distance_BT:
      how far back a query's value stands, 0 elsewhere.
    """
    rng = np.random.default_rng((seed, number))
    made = [_row(task, rng) for _ in range(count)]
    tokens, target, distance = (np.array(column, dtype=np.int32) for column in zip(*made))
    return {
        "tokens_BT": tokens,
        "target_BT": target,
        "learn_BT": (distance > 0).astype(np.float32),
        "segment_BT": np.zeros_like(tokens),
        "distance_BT": distance,
    }


def _row(task: Task, rng: np.random.Generator) -> tuple[list[int], list[int], list[int]]:
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


def only_recent_values(task: Task, far: int, count: int = 2000, seed: int = 1) -> float:
    """What guessing gets at distances of at least `far`, by simulation.

    The guesser is told that the answer stands at least `far` tokens back, sees which values do, and not which
    keys they belong to: it draws among them.
    """
    batch = rows(task, count, seed, 0)
    hits = []
    for tokens, distance in zip(batch["tokens_BT"], batch["distance_BT"]):
        for at in np.flatnonzero(distance >= far):
            candidates = np.sum(tokens[: at - far + 1] < task.values)
            hits.append(1 / candidates)
    return float(np.mean(hits))
