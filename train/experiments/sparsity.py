"""How sparse attention is, and how unequal the keys are: H2O's two observations, on any checkpoint.

    python -m train.experiments.sparsity --checkpoint=models/smollm2 --texts=8 --out=results/sparsity.csv

For each layer: the share of attention weights below 1 % of the largest of their row (causal entries only),
the share of all attention that the most attended tenth and fifth of the keys get, and the slope of the sums
over their rank (log-log, ranks 2 to half: a power law is a straight line).

Source: arXiv 2306.14048, section 3, which reports more than 95 % for OPT. Axes: N query heads, T queries, S
keys.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from mixattn.cache import FullSequence
from mixattn.cache.protocol import KV
from mixattn.evals.longcontext.checkpoint import CheckpointModel
from mixattn.spec import Layer
from mixattn.tools import cli
from pallas_kernels import results

flags.DEFINE_string("checkpoint", "models/smollm2", "A checkpoint directory.")
flags.DEFINE_integer("texts", 8, "Stretches of English prose.", lower_bound=1)
flags.DEFINE_integer("length", 384, "Tokens of each.", lower_bound=16)
flags.DEFINE_string("out", "results/sparsity.csv", "The table.")
FLAGS = flags.FLAGS
SMALL = 0.01  # of the largest weight of a row


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kv", "pos_BT", "segment_BT", "seen"],
    meta_fields=[],
)
@dataclass(frozen=True)
class ObservedSequence(FullSequence):
    """A complete sequence of one row that keeps figures of every layer's attention.

    Attributes:
      seen: layer -> (share of small weights, column sums [N, S]).
    """

    seen: Mapping[int, tuple[jax.Array, jax.Array]] = field(default_factory=dict)

    def attend(
        self, layer: Layer, q_BTNH: jax.Array, *, scale: float | None = None, softcap: float | None = None
    ) -> tuple[jax.Array, Self]:
        out_BTNH, _ = super().attend(layer, q_BTNH, scale=scale, softcap=softcap)
        figures = observed(q_BTNH[0], self.kv[layer.owner], layer.window, scale, softcap)
        return out_BTNH, dataclasses.replace(self, seen={**self.seen, layer.index: figures})


def observed(
    q_TNH: jax.Array, kv: KV, window: int | None, scale: float | None, softcap: float | None
) -> tuple[jax.Array, jax.Array]:
    """The share of weights below `SMALL` of their row's largest, and the column sums [N, S]."""
    T, N, H = q_TNH.shape
    k_SNH = jnp.repeat(kv[0][0], N // kv[0].shape[2], axis=1)
    score_NTS = jnp.einsum("TNH,SNH->NTS", q_TNH, k_SNH) * (H**-0.5 if scale is None else scale)
    score_NTS = softcap * jnp.tanh(score_NTS / softcap) if softcap else score_NTS
    age_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    seen_TS = (age_TS >= 0) & (age_TS < (window or T))
    weight_NTS = jax.nn.softmax(jnp.where(seen_TS[None], score_NTS, -jnp.inf), axis=-1)
    small_NTS = seen_TS[None] & (weight_NTS < SMALL * jnp.max(weight_NTS, axis=-1, keepdims=True))
    return jnp.sum(small_NTS) / (N * jnp.sum(seen_TS)), jnp.sum(weight_NTS, axis=1)


def of_layer(small: np.ndarray, sums_XNS: np.ndarray) -> dict[str, float]:
    """The figures of a layer from those of its texts."""
    sorted_XNS = -np.sort(-np.asarray(sums_XNS, np.float64), axis=-1)
    S = sorted_XNS.shape[-1]
    share = {part: sorted_XNS[..., : max(1, int(S * part))].sum(-1) / S for part in (0.1, 0.2)}
    rank = np.arange(2, S // 2 + 1)
    mean_S = np.log(np.maximum(sorted_XNS, 1e-30)).mean(axis=(0, 1))[rank - 1]
    return {
        "small_weights": float(np.mean(small)),
        "top_tenth_gets": float(share[0.1].mean()),
        "top_fifth_gets": float(share[0.2].mean()),
        "slope": float(np.polyfit(np.log(rank), mean_S, 1)[0]),
    }


@functools.partial(jax.jit, static_argnames="graphdef")
def _observe(graphdef: nnx.GraphDef, params: nnx.State, tokens_1T: jax.Array) -> Any:
    model = nnx.merge(graphdef, params)
    return model.forward(tokens_1T, cache=ObservedSequence({})).cache.seen


def main() -> None:
    """Prints and writes the table."""
    model = CheckpointModel(Path(FLAGS.checkpoint))
    model.check(FLAGS.length, 0)
    graphdef, params = nnx.split(model.model)
    seen = [
        _observe(graphdef, params, jnp.asarray([model.text(FLAGS.length, i)])) for i in range(FLAGS.texts)
    ]
    rows = []
    for layer in seen[0]:
        small, sums = zip(*(one[layer] for one in seen), strict=True)
        about = of_layer(np.asarray(small), np.asarray(sums))
        rows.append({"layer": layer} | {name: round(value, 4) for name, value in about.items()})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    settings = {"checkpoint": FLAGS.checkpoint, "texts": FLAGS.texts, "length": FLAGS.length}
    results.write_csv(FLAGS.out, rows, command="python -m train.experiments.sparsity", **settings)


if __name__ == "__main__":
    cli.run(main)
