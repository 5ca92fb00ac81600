"""Settings of one model that save KV memory, and batches of answers under each.

full: every key is kept. window: each layer sees the last `budget` keys. heavy: the prompt is read in full,
then each layer keeps the `budget` keys that drew attention or are recent (H2O). untrained: the same shape
with random weights, the control.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import CacheMaker, KeptBy, Ring
from mixattn.generation import STRIDE, decode, prefill
from mixattn.keep import Keep
from mixattn.model import Transformer
from mixattn.sample import SamplingParams
from serving.evals import loading

SETTINGS = ("full", "window", "heavy", "untrained")


class Setting(NamedTuple):
    """A model with the cache that it generates with."""

    model: Transformer
    cache: CacheMaker


def make(name: str, model: Transformer, budget: int) -> Setting:
    """One of SETTINGS of a model.

    Raises:
      ValueError: there is no such setting, or the budget is below 2 keys.
    """
    if budget < 2:
        raise ValueError(f"a budget of {budget} keys; at least 2 are needed")
    if name == "full":
        return Setting(model, Ring)
    if name == "window":
        return Setting(sliding(model, budget), Ring)
    if name == "heavy":
        return Setting(model, KeptBy(Keep(budget=budget, recent=budget - budget // 2), prompt=budget))
    if name == "untrained":
        return Setting(loading.untrained(model.config), Ring)
    raise ValueError(f"setting {name!r} is not one of {', '.join(SETTINGS)}")


def sliding(model: Transformer, window: int) -> Transformer:
    """The same weights with every layer sliding."""
    layers = (f"{layer.owner}s" for layer in model.config.layers)
    config = dataclasses.replace(model.config, kv_wiring="_".join(layers), window=window)
    shape = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(shape)[0], nnx.split(model)[1])


def answer(
    setting: Setting,
    prompts: Sequence[Sequence[int]],
    *,
    length: int,
    max_new_tokens: int,
    stop: Sequence[int],
) -> list[list[int]]:
    """Greedy answers without their stop token; prompts are padded to `length`, so that batches share
    programs."""
    tokens_BT = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(tokens_BT, prompts):
        row[: len(prompt)] = prompt
    count_B = jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
    greedy_B = SamplingParams.greedy(len(prompts), np)
    stop_X = jnp.asarray(list(stop), jnp.int32)
    graphdef, params = nnx.split(setting.model)
    state = prefill(
        graphdef,
        params,
        jnp.asarray(tokens_BT),
        count_B,
        greedy_B,
        stop_X,
        cache=setting.cache,
        capacity=length + max_new_tokens,
    )
    parts = [np.asarray(state.token_B)[None]]
    for done in range(1, max_new_tokens, STRIDE):
        state, new_SB = decode(graphdef, params, state, greedy_B, stop_X, min(STRIDE, max_new_tokens - done))
        parts.append(np.asarray(new_SB)[: max_new_tokens - done])
    jax.block_until_ready(state.token_B)
    rows = [[int(t) for t in column if t >= 0] for column in np.concatenate(parts).T]
    return [row[:-1] if row and row[-1] in set(stop) else row for row in rows]
