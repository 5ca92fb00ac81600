"""What is minimised: cross entropy of the learnt tokens, plus the losses that keep experts in use.

Sums, not means, are returned: a mean over micro-batches or devices is then exact whatever part of each is
learnt.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn import ModelConfig, Transformer

type Params = dict[str, jax.Array]


class Sums(NamedTuple):
    """Over one (micro-)batch, float32: sums over tokens, and means of the experts' figures.

    `right` counts learnt tokens whose target is the likeliest.
    """

    nats: jax.Array
    right: jax.Array
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


# Makes the model of a config; `Transformer` itself, or an experiment's variation on it.
type Build = Callable[..., Transformer]


def init_params(config: ModelConfig, seed: int, build: Build = Transformer) -> Params:
    return flatten(build(config, rngs=nnx.Rngs(seed)))[1]


@functools.cache
def graph_of(config: ModelConfig, build: Build = Transformer) -> Any:
    """The static graph of a model of this config."""
    return nnx.split(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))), nnx.Param)[0]


def model_of(config: ModelConfig, params: Params, build: Build = Transformer) -> Transformer:
    """A model of this config with these parameters."""
    return assemble(graph_of(config, build), params)


def score(logits_NV: jax.Array, target_N: jax.Array, learn_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of learn * -log softmax(logits)[target], in nats, and of learn where the target is on top."""
    logits_NV = logits_NV.astype(jnp.float32)
    picked_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=-1)[:, 0]
    nats_N = jax.nn.logsumexp(logits_NV, axis=-1) - picked_N
    right_N = picked_N >= logits_NV.max(axis=-1)
    return jnp.sum(nats_N * learn_N), jnp.sum(jnp.where(right_N, learn_N, 0))


def sums(
    graph: Any,
    params: Params,
    batch: dict[str, jax.Array],
    *,
    document_mask: bool = False,
    remat: Callable | None = None,
) -> Sums:
    """Runs the model on one batch (see `train.data.Batch`); `remat` as in `Transformer.forward`."""
    model = assemble(graph, params)
    segment_BT = batch["segment_BT"] if document_mask else None
    forward = model.forward(batch["tokens_BT"], segment_BT=segment_BT, remat=remat)
    hidden_ND = forward.hidden_BTD.reshape(-1, forward.hidden_BTD.shape[-1])
    learn_N = batch["learn_BT"].reshape(-1)
    nats, right = score(model.head(hidden_ND), batch["target_BT"].reshape(-1), learn_N)
    zero = jnp.zeros((), jnp.float32)
    load_LE = forward.aux.get("expert_load_LE", jnp.zeros((1, 1), jnp.float32))
    return Sums(
        nats=nats,
        right=right,
        learnt=learn_N.sum(),
        load_balance=forward.aux.get("load_balance", zero),
        z=forward.aux.get("z", zero),
        expert_load_E=load_LE.mean(axis=0),
    )
