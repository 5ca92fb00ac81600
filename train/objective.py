"""What is minimised: cross entropy of the learnt tokens, plus the losses that keep experts in use.

Sums, not means, are returned: a mean over micro-batches or devices is then exact whatever part of each is
learnt.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn import ModelConfig, Transformer

type Params = dict[str, jax.Array]


class Sums(NamedTuple):
    """Over one (micro-)batch. `nats` and `learnt` are float32 sums over tokens; the rest are means."""

    nats: jax.Array
    learnt: jax.Array
    load_balance: jax.Array
    z: jax.Array
    expert_load_E: jax.Array


def flatten(model: nnx.Module) -> tuple[Any, Params]:
    """Splits a model into its static graph and a flat dict of parameters by path."""
    graph, state = nnx.split(model, nnx.Param)
    return graph, {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def assemble(graph: Any, params: Params) -> Any:
    """The model again, from what `flatten` gave."""
    paths = ((tuple(int(p) if p.isdigit() else p for p in path.split(".")), x) for path, x in params.items())
    return nnx.merge(graph, nnx.from_flat_state((path, nnx.Param(x)) for path, x in paths))


@functools.cache
def graph_of(config: ModelConfig) -> Any:
    """The static graph of a model of this config."""
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))), nnx.Param)[0]


def model_of(config: ModelConfig, params: Params) -> Transformer:
    """A model of this config with these parameters."""
    return assemble(graph_of(config), params)


def cross_entropy(logits_NV: jax.Array, target_N: jax.Array, learn_N: jax.Array) -> jax.Array:
    """Sum over tokens of learn * -log softmax(logits)[target], in nats, float32."""
    logits_NV = logits_NV.astype(jnp.float32)
    picked_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=-1)[:, 0]
    return jnp.sum((jax.nn.logsumexp(logits_NV, axis=-1) - picked_N) * learn_N)


def sums(graph: Any, params: Params, batch: dict[str, jax.Array], *, document_mask: bool = False) -> Sums:
    """Runs the model on one batch (see `train.data.Batch`)."""
    model = assemble(graph, params)
    tokens_BT = batch["tokens_BT"]
    segment_BT = batch["segment_BT"] if document_mask else None
    forward = model.forward(tokens_BT[:, :-1], segment_BT=segment_BT)
    hidden_ND = forward.hidden_BTD.reshape(-1, forward.hidden_BTD.shape[-1])
    learn_N = batch["learn_BT"].reshape(-1)
    zero = jnp.zeros((), jnp.float32)
    load_LE = forward.aux.get("expert_load_LE", jnp.zeros((1, 1), jnp.float32))
    return Sums(
        nats=cross_entropy(model.head(hidden_ND), tokens_BT[:, 1:].reshape(-1), learn_N),
        learnt=learn_N.sum(),
        load_balance=forward.aux.get("load_balance", zero),
        z=forward.aux.get("z", zero),
        expert_load_E=load_LE.mean(axis=0),
    )
