"""The training objective: cross entropy over the loss tokens, and the load-balancing losses of the experts.

Functions return sums, not means, so that a mean over micro-batches or devices is exact even when each holds a
different number of loss tokens.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn import ModelConfig, Transformer

type Params = dict[str, jax.Array]
# Builds the model of a config: `Transformer` itself, or an experiment's variation of it.
type ModelFactory = Callable[..., Transformer]


class Sums(NamedTuple):
    """Float32 results of one (micro-)batch: sums over its tokens, means over the layers for the experts.

    Attributes:
      nats: negative log likelihood of the loss tokens.
      correct: loss tokens whose target has the highest logit.
      loss_tokens: sum of the loss mask.
      load_balance, z: unweighted expert losses.
      expert_load_E: fraction of assignments per expert.
    """

    nats: jax.Array
    correct: jax.Array
    loss_tokens: jax.Array
    load_balance: jax.Array
    z: jax.Array
    expert_load_E: jax.Array


def flatten(model: nnx.Module) -> tuple[Any, Params]:
    """Splits a model into its static graph and a flat dict from path to parameter."""
    graph, state = nnx.split(model, nnx.Param)
    return graph, {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def assemble(graph: Any, params: Params) -> Any:
    """Rebuilds the model from the graph and parameters that `flatten` returned."""
    paths = ((tuple(int(p) if p.isdigit() else p for p in path.split(".")), x) for path, x in params.items())
    return nnx.merge(graph, nnx.from_flat_state((path, nnx.Param(x)) for path, x in paths))


def init_params(config: ModelConfig, seed: int, build: ModelFactory = Transformer) -> Params:
    """Initializes parameters from `seed`."""
    return flatten(build(config, rngs=nnx.Rngs(seed)))[1]


@functools.cache
def graph_of(config: ModelConfig, build: ModelFactory = Transformer) -> Any:
    """Returns the static graph of a model of this config."""
    return nnx.split(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))), nnx.Param)[0]


def model_of(config: ModelConfig, params: Params, build: ModelFactory = Transformer) -> Transformer:
    """Builds a model of this config with these parameters."""
    return assemble(graph_of(config, build), params)


def score(logits_NV: jax.Array, target_N: jax.Array, loss_mask_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the masked sums of -log softmax(logits)[target], in nats, and of correct predictions."""
    logits_NV = logits_NV.astype(jnp.float32)
    picked_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=-1)[:, 0]
    nats_N = jax.nn.logsumexp(logits_NV, axis=-1) - picked_N
    correct_N = picked_N >= logits_NV.max(axis=-1)
    return jnp.sum(nats_N * loss_mask_N), jnp.sum(jnp.where(correct_N, loss_mask_N, 0))


def sums(
    graph: Any,
    params: Params,
    batch: dict[str, jax.Array],
    *,
    document_mask: bool = False,
    remat: Callable[..., Any] | None = None,
) -> Sums:
    """Runs the model on one batch.

    Args:
      batch: see `train.data.Batch`.
      document_mask: restricts attention to the query's own document.
      remat: see `Transformer.forward`.
    """
    model = assemble(graph, params)
    segment_BT = batch["segment_BT"] if document_mask else None
    forward = model.forward(batch["tokens_BT"], segment_BT=segment_BT, remat=remat)
    hidden_ND = forward.hidden_BTD.reshape(-1, forward.hidden_BTD.shape[-1])
    loss_mask_N = batch["loss_mask_BT"].reshape(-1)
    nats, correct = score(model.head(hidden_ND), batch["target_BT"].reshape(-1), loss_mask_N)
    zero = jnp.zeros((), jnp.float32)
    load_LE = forward.aux.get("expert_load_LE", jnp.zeros((1, 1), jnp.float32))
    return Sums(
        nats=nats,
        correct=correct,
        loss_tokens=loss_mask_N.sum(),
        load_balance=forward.aux.get("load_balance", zero),
        z=forward.aux.get("z", zero),
        expert_load_E=load_LE.mean(axis=0),
    )
