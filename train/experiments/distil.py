"""End-to-end distillation: a student's next-token distribution brought nearer its original's.

The loss is the divergence of the original's distribution from the student's, which needs no labels. Adam on
the named parameters, cosine decay to zero.

Axes: B rows of a step, R rows, T tokens, D model width.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixattn import Transformer
from train import objective
from train.objective import Params
from train.optimizer import with_promotion

CLIP = 1.0


def distil(
    student: Transformer,
    original: Transformer,
    rows_RT: np.ndarray,
    *,
    steps: int,
    learning_rate: float,
    batch: int = 2,
    trained: Callable[[str], bool] = lambda path: ".attention." in path,
    report: Callable[[int, float], None] = lambda step, nats: None,
) -> Transformer:
    """Returns the student after `steps` steps of `batch` rows each, which take turns.

    Args:
      learning_rate: peak rate of Adam.
      trained: whether a parameter of this dotted path is trained.
      report: called after each step with the divergence before it, in nats per token.
    """
    graph, params = objective.flatten(student)
    moving = {path: x for path, x in params.items() if trained(path)}
    still = {path: x for path, x in params.items() if path not in moving}
    schedule = optax.cosine_decay_schedule(learning_rate, max(steps, 1))
    adam = optax.adam(schedule, b1=0.9, b2=0.99)
    optimizer = with_promotion(optax.chain(optax.clip_by_global_norm(CLIP), adam))

    @jax.jit
    def step(
        moving: Params, state: optax.OptState, original: Transformer, rows_BT: jax.Array
    ) -> tuple[Params, optax.OptState, jax.Array]:
        wanted = jax.nn.log_softmax(original(rows_BT))

        def loss(moving: Params) -> jax.Array:
            return divergence(wanted, objective.assemble(graph, moving | still)(rows_BT))

        nats, gradient = jax.value_and_grad(loss)(moving)
        updates, state = optimizer.update(gradient, state)
        return {path: x + updates[path] for path, x in moving.items()}, state, nats

    state = optimizer.init(moving)
    for number, rows_BT in zip(range(steps), _turns(rows_RT, batch)):
        moving, state, nats = step(moving, state, original, jnp.asarray(rows_BT))
        report(number, float(nats))
    return objective.assemble(graph, moving | still)


def divergence(wanted_BTV: jax.Array, logits_BTV: jax.Array) -> jax.Array:
    """Mean of sum_V p (log p - log q): p from log-probabilities, q from logits, in nats per token."""
    log_q_BTV = jax.nn.log_softmax(logits_BTV)
    return jnp.mean(jnp.sum(jnp.exp(wanted_BTV) * (wanted_BTV - log_q_BTV), axis=-1))


def _turns(rows_RT: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    start = 0
    while True:
        yield rows_RT[np.arange(start, start + batch) % len(rows_RT)]
        start += batch
