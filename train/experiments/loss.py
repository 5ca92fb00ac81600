"""Next-token loss of a model on rows of tokens, a few at a time; one program per wiring for all measures.

Axes: R rows, T tokens, N tokens of all rows, D model width, V vocabulary.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mixattn import Transformer
from train import objective

ROWS_AT_ONCE = 4


def nats(model: Transformer, rows_RT: np.ndarray) -> float:
    """Mean negative log likelihood of every token but each row's first."""
    total = 0.0
    for hidden_RTD, tokens_RT in hidden_states(model, rows_RT):
        logits_NV = model.head(hidden_RTD[:, :-1].reshape(-1, hidden_RTD.shape[-1]))
        target_N = jnp.asarray(tokens_RT[:, 1:].reshape(-1))
        total += float(_score(logits_NV, target_N, jnp.ones(len(target_N)))[0])
    return total / (len(rows_RT) * (rows_RT.shape[1] - 1))


def hidden_states(model: Transformer, rows_RT: np.ndarray) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """hidden_RTD after the final norm, and the rows that it is of, a few rows at a time."""
    for start in range(0, len(rows_RT), ROWS_AT_ONCE):
        part_RT = rows_RT[start : start + ROWS_AT_ONCE]
        yield _hidden(model, jnp.asarray(part_RT)), part_RT


_hidden = jax.jit(lambda model, rows_RT: model.forward(rows_RT).hidden_BTD)
_score = jax.jit(objective.score)
