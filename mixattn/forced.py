"""The likelihood of given tokens, read one by one through a cache: what forgetting costs, in nats.

A teacher-forced forward pass sees every token; here the prompt is read as in generation and each further
token goes through the cache, so that evictions show.

Axes: B rows, T tokens, S tokens of one call.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import CacheMaker, Contiguous, Kept, Ring, RowCache
from mixattn.generation import cache_kind, pad, prepared, read_prompts, rounded
from mixattn.keep import Keep
from mixattn.model import Transformer

STRIDE = 64  # tokens per call; between calls the host shows progress and sees Ctrl-C


def log_likelihoods(
    model: Transformer,
    rows: Sequence[Sequence[int]],
    prompt: int,
    *,
    cache: type[Contiguous | Kept] = Ring,
    keep: Keep | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The log-likelihood of each token after the prompt.

    Args:
      rows: token ids, all of one length T.
      prompt: tokens of each row that are read at once, at least 1.
      cache, keep: see `mixattn.generate`.
      on_tokens: called with the number of tokens read so far.

    Returns:
      nats (negative), float64 [B, T - prompt].

    Raises:
      ValueError: rows of different lengths, or a prompt that leaves nothing to score.
    """
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"rows have between {min(lengths, default=0)} and {max(lengths, default=0)} tokens")
    T = lengths.pop()
    if not 1 <= prompt < T:
        raise ValueError(f"a prompt of {prompt} tokens leaves nothing of rows of {T}")
    made = cache_kind(cache, keep, model.config, [prompt] * len(rows), T - prompt)
    model = prepared(model, T, strict=True)
    graphdef, params = nnx.split(model)
    tokens_BT, count_B = pad([row[:prompt] for row in rows], model.config.vocab_size)
    rest_BT = np.asarray(rows, np.int32)[:, prompt:]
    hidden_BD, held = _read(graphdef, params, tokens_BT, count_B, cache=made, capacity=rounded(T))
    found = []
    for start in range(0, rest_BT.shape[1], STRIDE):
        part_BS = rest_BT[:, start : start + STRIDE]
        padded_BS = np.pad(part_BS, ((0, 0), (0, STRIDE - part_BS.shape[1])))
        hidden_BD, held, nats_SB = _feed(graphdef, params, hidden_BD, held, padded_BS)
        found.append(np.asarray(nats_SB, np.float64).T[:, : part_BS.shape[1]])
        if on_tokens:
            on_tokens(prompt + start + part_BS.shape[1])
    return np.concatenate(found, axis=1)


@functools.partial(jax.jit, static_argnames=("graphdef", "cache", "capacity"))
def _read(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    tokens_BT: jax.Array,
    count_B: jax.Array,
    *,
    cache: CacheMaker,
    capacity: int,
) -> tuple[jax.Array, RowCache]:
    return read_prompts(nnx.merge(graphdef, params), tokens_BT, count_B, cache=cache, capacity=capacity)


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames=("hidden_BD", "held"))
def _feed(
    graphdef: nnx.GraphDef, params: nnx.State, hidden_BD: jax.Array, held: RowCache, tokens_BS: jax.Array
) -> tuple[jax.Array, RowCache, jax.Array]:
    """Scores each token by the state before it, then reads it. Returns state, cache and nats_SB."""
    model = nnx.merge(graphdef, params)

    def step(
        carry: tuple[jax.Array, RowCache], token_B: jax.Array
    ) -> tuple[tuple[jax.Array, RowCache], jax.Array]:
        hidden_BD, held = carry
        nats_BV = jax.nn.log_softmax(model.head(hidden_BD), axis=-1)
        nats_B = jnp.take_along_axis(nats_BV, token_B[:, None], axis=1)[:, 0]
        out = model.forward(token_B[:, None], cache=held)
        return (out.hidden_BTD[:, 0], out.cache), nats_B

    (hidden_BD, held), nats_SB = jax.lax.scan(step, (hidden_BD, held.with_counts(None)), tokens_BS.T)
    return hidden_BD, held, nats_SB
