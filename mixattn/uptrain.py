"""Converts a trained model to another wiring, as the starting point of further training.

Layers that become readers lose their K/V projections. The owner of a new group is initialized from its own
projections ("owner"), from the mean over the group ("mean", as in MLKV, arXiv 2406.09297), or at random
("random", the baseline of the other two). All other parameters are kept; an unchanged wiring changes nothing.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.hf.tensors import abstract_model
from mixattn.model import Transformer

type Init = Literal["owner", "mean", "random"]
INITS = ("owner", "mean", "random")
_KV = ("k", "v", "k_norm")


def rewire(
    model: Transformer,
    wiring: str,
    *,
    window: int | None = None,
    sinks: int | None = None,
    init: Init = "mean",
    seed: int = 0,
) -> Transformer:
    """The model with another wiring and, if given, another window and number of sinks.

    Args:
      wiring: a wiring string, or the name of a pattern.
      init: initialization of the K/V projections of new groups.
      seed: random seed of `init="random"`.

    Raises:
      ValueError: the new wiring needs the K/V projections of a layer that is a reader in the old wiring.
    """
    if init not in INITS:
        raise ValueError(f"init is {init!r}; it must be one of {', '.join(INITS)}")
    old = model.config
    sinks = old.sinks if sinks is None else sinks
    config = dataclasses.replace(old, kv_wiring=wiring, window=window or old.window, sinks=sinks)
    params = nnx.to_pure_dict(nnx.split(model)[1])
    fresh = (
        nnx.to_pure_dict(nnx.split(Transformer(config, rngs=nnx.Rngs(seed)))[1]) if init == "random" else {}
    )
    for owner in config.owners:
        group = [layer.index for layer in config.layers if layer.owner == owner]
        sources = group if init == "mean" else [owner]
        if readers := [i for i in sources if not old.layers[i].owns]:
            raise ValueError(
                f"the new group of layer {owner} needs the K/V of layer {readers[0]}, which reads layer "
                f"{old.layers[readers[0]].owner}'s in the old wiring"
            )
        merged = jax.tree.map(
            lambda *w: jnp.mean(jnp.stack(w), axis=0), *(_kv_params(params, i) for i in sources)
        )
        if init == "random" and len(group) > 1:
            merged = _kv_params(fresh, owner)
        params["blocks"][owner]["attention"] |= merged
    for layer in config.layers:
        if not layer.owns:
            for name in _KV:
                params["blocks"][layer.index]["attention"].pop(name, None)
    graphdef, shapes = abstract_model(config)
    nnx.replace_by_pure_dict(shapes, params)
    return nnx.merge(graphdef, shapes)


def _kv_params(params: dict[str, Any], layer: int) -> dict[str, Any]:
    attention = params["blocks"][layer]["attention"]
    return {name: attention[name] for name in _KV if name in attention}
