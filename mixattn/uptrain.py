"""A trained model in another wiring, as the starting point of further training.

Layers that stop owning K/V lose their projections; the owner of a new group starts from its own ("owner"),
from the mean over the group ("mean", as MLKV does, arXiv 2406.09297), or anew ("random", what the other two
are compared with). Everything else is kept. With an unchanged wiring nothing changes, whichever way.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.hf.tensors import abstract
from mixattn.model import Transformer

type Init = Literal["owner", "mean", "random"]
INITS = ("owner", "mean", "random")
_KV = ("k", "v", "k_norm")


def rewire(
    model: Transformer, wiring: str, *, window: int | None = None, init: Init = "mean", seed: int = 0
) -> Transformer:
    """The model with `wiring` (a string or a pattern's name) and, if given, another window.

    Args:
      seed: of what "random" draws.

    Raises:
      ValueError: a layer whose K/V the new wiring needs has none of its own in the old one.
    """
    if init not in INITS:
        raise ValueError(f"init is {init!r}; it must be one of {', '.join(INITS)}")
    old = model.config
    config = dataclasses.replace(old, kv_wiring=wiring, window=window or old.window)
    params = nnx.to_pure_dict(nnx.split(model)[1])
    fresh = (
        nnx.to_pure_dict(nnx.split(Transformer(config, rngs=nnx.Rngs(seed)))[1]) if init == "random" else {}
    )
    for owner in config.owners:
        group = [layer.index for layer in config.layers if layer.owner == owner]
        sources = group if init == "mean" else [owner]
        if homeless := [i for i in sources if not old.layers[i].owns]:
            raise ValueError(
                f"the new group of layer {owner} needs the K/V of layer {homeless[0]}, which reads layer "
                f"{old.layers[homeless[0]].owner}'s in the old wiring"
            )
        merged = jax.tree.map(lambda *w: jnp.mean(jnp.stack(w), axis=0), *(_kv(params, i) for i in sources))
        if init == "random" and len(group) > 1:
            merged = _kv(fresh, owner)
        params["blocks"][owner]["attention"] |= merged
    for layer in config.layers:
        if not layer.owns:
            for name in _KV:
                params["blocks"][layer.index]["attention"].pop(name, None)
    graphdef, shapes = abstract(config)
    nnx.replace_by_pure_dict(shapes, params)
    return nnx.merge(graphdef, shapes)


def _kv(params: dict, layer: int) -> dict:
    attention = params["blocks"][layer]["attention"]
    return {name: attention[name] for name in _KV if name in attention}
