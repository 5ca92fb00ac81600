"""The oracle of an engine that evicts: one request, nothing cached, masks over the whole sequence, float64.

A query of the prompt sees every key before it. Query t behind the prompt sees what its layer's owner held
when it came, and itself; every step computes the whole sequence anew under the masks so far.

Axes: S positions, K key/value heads, G query heads of each, H head size.
"""

import dataclasses
import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn import Transformer
from mixattn.cache.kept import full_owners
from tests.serving.tiny import LONGEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseMasked:
    """A cache of one whole sequence under masks; keeps the weights that each key got.

    Attributes:
      mask: full owner -> [K, S, S], true where query s sees key s'.
      told: owner -> [K, S, S], summed over the heads of a key and over the layers in scope.
    """

    mask: dict[int, jax.Array]
    all_consumers: bool = field(metadata={"static": True})
    kv: dict[int, tuple[jax.Array, jax.Array]] = field(default_factory=dict)
    told: dict[int, jax.Array] = field(default_factory=dict)

    def positions(self, T):
        return jnp.arange(T)[None]

    def write(self, layer, k_BTKH, v_BTKH):
        return dataclasses.replace(self, kv={**self.kv, layer.index: (k_BTKH, v_BTKH)})

    def attend(self, layer, q_BTNH, *, scale=None, softcap=None):
        k_SKH, v_SKH = (x[0] for x in self.kv[layer.owner])
        (S, K, H), N = k_SKH.shape, q_BTNH.shape[2]
        q_SKGH = q_BTNH[0].reshape(S, K, N // K, H)
        age_SS = jnp.arange(S)[:, None] - jnp.arange(S)[None]
        if layer.slides:
            mask_KSS = jnp.broadcast_to((age_SS >= 0) & (age_SS < layer.window), (K, S, S))
        else:
            mask_KSS = self.mask[layer.owner]
        score = jnp.einsum("SKGH,TKH->KGST", q_SKGH, k_SKH) * (H**-0.5 if scale is None else scale)
        score = softcap * jnp.tanh(score / softcap) if softcap else score
        weight = jax.nn.softmax(jnp.where(mask_KSS[:, None], score, -jnp.inf), axis=-1)
        out_1SNH = jnp.einsum("KGST,TKH->SKGH", weight, v_SKH).reshape(1, S, N, H)
        if layer.slides or not (self.all_consumers or layer.owns):
            return out_1SNH, self
        told = jnp.sum(weight, axis=1) + self.told.get(layer.owner, 0)
        return out_1SNH, dataclasses.replace(self, told={**self.told, layer.owner: told})

    def reads_every_query(self, layer):
        return False

    def at_last(self, T):
        return self

    def after_view(self, view):
        return view

    def select_last(self, x_BTD):
        return x_BTD

    def advance(self, T):
        return self


@functools.cache
def _float64(net: Transformer):
    """The model's weights in float64, and its jitted pass over a whole sequence."""
    with jax.enable_x64():
        config = dataclasses.replace(net.config, dtype="float64")
        graphdef, own = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(nnx.split(net)[1])]
        params = jax.tree.unflatten(jax.tree.structure(own), [jnp.asarray(x) for x in leaves])

        def run(params, tokens_1S, mask, all_consumers):
            model = nnx.merge(graphdef, params)
            step = model.forward(tokens_1S, cache=DenseMasked(mask, all_consumers))
            keys = {owner: step.cache.kv[owner][0][0] for owner in mask}
            return model.head(step.hidden_BTD)[0], step.cache.told, keys

        jitted = jax.jit(run, static_argnums=3)
    return params, jitted


class DenseKeep:
    """Greedy decoding of one request under a `SlabPlan`'s budgets.

    Args:
      keep: how scores are made (`mixattn.keep.Keep`). limits: by full owner, (heavy, recent, sinks).
      broken: a defect that tests must notice: "evict first", "ties", "future", "longer".

    Attributes:
      output_ids: the tokens.
      kept: tokens computed -> owner -> for each head, the positions held then.
    """

    def __init__(self, net, keep, limits, prompt, n, *, broken=None):
        self.net, self.keep, self.broken = net, keep, broken
        self.owners = full_owners(net.config)
        self.limits = dict(zip(self.owners, limits))
        K = net.config.n_kv_heads
        causal = np.tril(np.ones((LONGEST, LONGEST), bool))
        self.mask = {owner: np.broadcast_to(causal, (K, *causal.shape)).copy() for owner in self.owners}
        tokens, T = list(prompt), len(prompt)
        logits_SV, told, keys = self._run(tokens)
        tokens.append(int(np.argmax(logits_SV[T - 1])))
        self.score = {owner: self._votes(told[owner], T) for owner in self.owners}
        held = {owner: [self._cut(owner, head, T, keys[owner]) for head in range(K)] for owner in self.owners}
        self.kept = {T: {owner: [set(s) for s in sets] for owner, sets in held.items()}}
        for at in range(T, T + n - 1):
            for owner in self.owners:
                for head in range(K):
                    held[owner][head].add(at)
                    if broken == "evict first":
                        self._evict(owner, head, held[owner][head], at, keys[owner])
                    self.mask[owner][head, at] = False
                    self.mask[owner][head, at, sorted(held[owner][head])] = True
            logits_SV, told, keys = self._run(tokens)
            for owner in self.owners:
                self._step(told[owner][:, at], self.score[owner], at)
                for head in range(K):
                    if broken != "evict first":
                        self._evict(owner, head, held[owner][head], at, keys[owner])
            self.kept[at + 1] = {owner: [set(s) for s in sets] for owner, sets in held.items()}
            tokens.append(int(np.argmax(logits_SV[at])))
        self.output_ids = tokens[T:]

    def _run(self, tokens):
        params, run = _float64(self.net)
        padded = np.zeros((1, LONGEST), np.int32)
        padded[0, : len(tokens)] = tokens
        with jax.enable_x64():
            found = run(params, jnp.asarray(padded), self.mask, self.keep.scope == "all_consumers")
            return jax.tree.map(np.asarray, found)

    def _votes(self, told_KSS, T):
        """score_KS of the prompt."""
        reads = {"snapkv": self.keep.window, "tova": 1, "h2o": T, "h2o_mean": T}.get(self.keep.scorer, 0)
        past = T + 1 if self.broken == "future" else T - 1 if self.broken == "longer" else T
        votes_KS = told_KSS[:, T - min(T, reads) : past].sum(axis=1) * (reads > 0)
        if self.keep.scorer == "tova":
            votes_KS[:] = votes_KS.mean(axis=0)
        if self.keep.scorer == "snapkv":
            votes_KS[:, T - self.keep.window :] = 0
            half = self.keep.pool // 2
            padded = np.pad(votes_KS[:, :T], ((0, 0), (half, half)))
            pooled = np.stack([padded[:, i : i + T] for i in range(self.keep.pool)]).mean(axis=0)
            votes_KS[:, :T] = pooled
        votes_KS[:, T:] = 0
        return votes_KS

    def _step(self, weights_KS, score_KS, at):
        if self.keep.scorer in ("h2o", "h2o_mean"):
            score_KS += weights_KS
        elif self.keep.scorer == "tova":
            score_KS[:] = weights_KS.mean(axis=0)

    def _worth(self, owner, head, position, newest, k_SKH):
        score = self.score[owner][head, position]
        match self.keep.scorer:
            case "h2o" | "tova" | "snapkv":
                return score
            case "h2o_mean":
                return score / (newest - position + 1)
            case "streaming" | "recent":
                return position
            case "knorm":
                return -np.linalg.norm(k_SKH[position, head])
        raise NotImplementedError(self.keep.scorer)

    def _cut(self, owner, head, T, k_SKH):
        heavy, recent, sinks = self.limits[owner]
        if heavy + recent + sinks >= T:
            return set(range(T))
        past = sorted(range(sinks, T - recent), key=lambda p: (-self._worth(owner, head, p, T - 1, k_SKH), p))
        return {*range(sinks), *past[:heavy], *range(T - recent, T)}

    def _evict(self, owner, head, held, at, k_SKH):
        heavy, recent, sinks = self.limits[owner]
        if self.keep.when == "prompt" or len(held) <= heavy + recent + sinks:
            return
        candidates = [p for p in held if sinks <= p <= at - recent]
        if self.keep.promotion == "always" and len(candidates) > 1:
            candidates.remove(at - recent)
        tie = -1 if self.broken == "ties" else 1
        worth = {p: self._worth(owner, head, p, at, k_SKH) for p in candidates}
        held.remove(min(candidates, key=lambda p: (worth[p], -tie * p)))
