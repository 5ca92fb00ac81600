"""Likelihoods of the same texts under many KV budgets: the prompt is computed once, the rest layer by layer.

Where every layer reads K/V of its own, what a budget evicts in a layer depends on that layer's queries and
keys alone. So all given tokens pass a layer in one product, and only its attention goes token by token,
through the same `Kept` cache as generation's. Budgets of one scorer are rows of one batch. The results are
those of `mixattn.forced.log_likelihoods`, in a fraction of the time.

Axes: B rows, T prompt tokens, S tokens behind it, R budgets, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import Kept, KeptBy
from mixattn.cache.protocol import KV
from mixattn.cache.together import ForcedRest, VotedPrompt
from mixattn.generation import prepared
from mixattn.keep import Keep
from mixattn.model import Transformer
from mixattn.spec import ModelConfig

type Votes = dict[int, jax.Array]  # owner -> votes_BKS


def applies(config: ModelConfig, keep: Keep | None) -> bool:
    """Whether `log_likelihoods_together` computes this model and budget."""
    own = all(layer.owns and not layer.slides for layer in config.layers) and not config.sinks
    return own and (keep is None or (keep.prefill == "exact" and keep.positions == "original"))


def log_likelihoods_together(
    model: Transformer,
    rows: Sequence[Sequence[int]],
    prompt: int,
    keeps: Sequence[Keep | None],
    on_budgets: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """The log-likelihood of each token after the prompt, for each budget; None keeps everything.

    Args:
      rows: token ids, all of one length. prompt: tokens of each row that are read at once.
      on_budgets: called with the number of budgets that are done.

    Returns:
      For each of `keeps` nats (negative), float64 [B, S].

    Raises:
      ValueError: a layer shares K/V or slides, a budget rolls or cuts by blocks, or nothing is to be scored.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or not 1 <= prompt < min(lengths):
        raise ValueError(f"a prompt of {prompt} tokens does not begin rows of {sorted(lengths)} tokens")
    if not all(applies(model.config, keep) for keep in keeps):
        raise ValueError("several budgets go together only where each layer owns its full K/V")
    tokens_BT = np.asarray(rows, np.int32)
    new = tokens_BT.shape[1] - prompt
    asked = [Keep("recent", prompt + new) if keep is None else keep for keep in keeps]
    for keep in asked:
        keep.check_rows([prompt], new, model.config.n_layers)
    graphdef, params = nnx.split(prepared(model, prompt + new, strict=True))
    voters = {_vote(keep): keep for keep in asked if keep.ranking.reads != 0}
    last_BD, kv, votes = _read(graphdef, params, tokens_BT[:, :prompt], keeps=tuple(voters.values()))
    votes_of = dict(zip(voters, votes, strict=True))
    found: dict[int, np.ndarray] = {}
    for members in _groups(keeps, asked):
        group = tuple(asked[i] for i in members)
        said = votes_of.get(_vote(group[0]), {})
        nats_RBS = _forced(graphdef, params, last_BD, kv, said, tokens_BT[:, prompt:], keeps=group)
        found |= dict(zip(members, np.asarray(nats_RBS, np.float64), strict=True))
        if on_budgets:
            on_budgets(len(found))
    return [found[i] for i in range(len(keeps))]


def _groups(keeps: Sequence[Keep | None], asked: Sequence[Keep]) -> list[list[int]]:
    """Indices of the budgets that go as rows of one batch: only their numbers of keys differ."""
    groups: dict[Any, list[int]] = {}
    for i, keep in enumerate(asked):
        alike = (keeps[i] is None, keep.ranking, keep.when, keep.promotion, keep.scope, keep.allocation)
        groups.setdefault(alike, []).append(i)
    return list(groups.values())


def _vote(keep: Keep) -> tuple[Any, ...]:
    """Equal for scorers to which a prompt says the same."""
    scorer = keep.ranking
    return type(scorer).votes, scorer.reads, scorer if keep.scorer == "expected" else None


@functools.partial(jax.jit, static_argnames=("graphdef", "keeps"))
def _read(
    graphdef: nnx.GraphDef, params: nnx.State, tokens_BT: jax.Array, *, keeps: tuple[Keep, ...]
) -> tuple[jax.Array, dict[int, KV], list[Votes]]:
    """hidden_BD of the last prompt token, K/V by owner, and the votes for the scorer of each of `keeps`."""
    model = nnx.merge(graphdef, params)
    B, T = tokens_BT.shape
    parts = tuple(KeptBy(keep, T).init(model.config, B, T) for keep in keeps)
    out = model.forward(tokens_BT, cache=VotedPrompt({}, parts=parts))
    read = cast(VotedPrompt, out.cache)
    return out.hidden_BTD[:, -1], read.kv, [part.votes for part in read.parts]


@functools.partial(jax.jit, static_argnames=("graphdef", "keeps"))
def _forced(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    last_BD: jax.Array,
    kv: dict[int, KV],
    votes: Votes,
    tokens_BS: jax.Array,
    *,
    keeps: tuple[Keep, ...],
) -> jax.Array:
    """nats_RBS of the tokens behind a prompt, for each of `keeps`, whose scorers are equal."""
    model, R = nnx.merge(graphdef, params), len(keeps)
    (B, S), T = tokens_BS.shape, next(iter(kv.values()))[0].shape[1]
    layers = _settled(model.config, kv, votes, keeps, S)
    tokens_XS = jnp.tile(tokens_BS, (R, 1))
    out = model.forward(tokens_XS, cache=ForcedRest(layers, jnp.full(R * B, T, jnp.int32), {}))
    before_XSD = jnp.concatenate([jnp.tile(last_BD, (R, 1))[:, None], out.hidden_BTD[:, :-1]], axis=1)

    def score(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_XD, token_X = pair
        nats_XV = jax.nn.log_softmax(model.head(hidden_XD), axis=-1)
        return jnp.take_along_axis(nats_XV, token_X[:, None], axis=1)[:, 0]

    nats_SX = jax.lax.map(score, (jnp.swapaxes(before_XSD, 0, 1), tokens_XS.T))
    return nats_SX.T.reshape(R, B, S)


def _settled(
    config: ModelConfig, kv: dict[int, KV], votes: Votes, keeps: tuple[Keep, ...], new: int
) -> dict[int, Kept]:
    """Owner -> the cache of this owner, in which each of `keeps` has cut the prompt for its rows."""
    B, T = next(iter(kv.values()))[0].shape[:2]
    kinds = [KeptBy(keep, T, new) for keep in keeps]
    largest = max(kinds, key=lambda kind: kind.keep.most(T, new, 0, config.n_layers))
    slabs = largest.init(config, B, T).slabs
    cut = []
    for kind in kinds:
        held = dataclasses.replace(kind.init(config, B, T), slabs=slabs, fresh=kv, votes=votes)
        cut.append(held.advance(T))
    whole = {
        owner: jax.tree.map(lambda *parts: jnp.concatenate(parts), *(held.slabs[owner] for held in cut))
        for owner in slabs
    }
    start_B = jnp.full(len(keeps) * B, T, jnp.int32)
    one = dataclasses.replace(
        cut[0], start_B=start_B, windows=dataclasses.replace(cut[0].windows, start_B=start_B)
    )
    return {owner: dataclasses.replace(one, slabs={owner: slab}) for owner, slab in whole.items()}
