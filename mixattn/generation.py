"""Batch generation without a server: one prefill, then decode steps until every row has stopped.

There are two compiled programs per (batch, rounded lengths): prefill, and a decode loop of up to `STRIDE`
steps per call. Weights and cache are pytree arguments; the cache is donated.

Axes: B rows, T prompt tokens (padded on the right), S steps, X stop ids.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn.cache import CacheMaker, Contiguous, Kept, KeptBy, Ring, RowCache
from mixattn.cache.kept import check_model
from mixattn.keep import Keep
from mixattn.model import Transformer
from mixattn.rope import for_length
from mixattn.sample import SamplingParams, sample
from mixattn.spec import ModelConfig

STRIDE = 16  # decode steps per call; between calls the host checks for stops, streams, and sees Ctrl-C


class GenerationState(NamedTuple):
    """The state a decode step updates: the cache, each row's newest token, and whether the row is live."""

    cache: RowCache
    token_B: jax.Array
    live_B: jax.Array


type Carry = tuple[jax.Array, GenerationState, jax.Array]  # step index, state, new tokens_SB


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    top_k: int = -1,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_ids: Sequence[int] = (),
    cache: type[Contiguous | Kept] = Ring,
    keep: Keep | None = None,
    then: Sequence[Sequence[int]] | None = None,
    on_tokens: Callable[[np.ndarray], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt.

    Args:
      prompts: token ids, at least one per prompt; lengths may differ.
      temperature, top_k, top_p, min_p: see `mixattn.sample.SamplingParams`.
      seed: row i samples with seed + i, independent of the other rows.
      stop_ids: a row ends with the first of these that it produces, which is kept as its last token.
      cache: `Ring` keeps what windows need, `Contiguous` every token, `Kept` what `keep` says.
      keep: which keys survive in layers with full attention (the cache is then `Kept`); None = all.
      then: what each row reads behind its prompt, at least one token: with `keep`, after the prompt was cut,
        as a question that comes when its document has been compressed already.
      on_tokens: called with each call's new tokens_SB; -1 for rows that had stopped.

    Returns:
      The new tokens of each prompt, at most `max_new_tokens`.

    Raises:
      ValueError: an empty prompt, a token id outside the vocabulary, more positions than a model with
        learned ones has, or a budget that holds nothing.
    """
    config = model.config
    tokens_BT, count_B = pad(prompts, config.vocab_size)
    kind = cache_kind(cache, keep, config, [len(prompt) for prompt in prompts], max_new_tokens)
    longest = max(map(len, prompts)) + max_new_tokens
    if then is not None:
        then_BT, then_B = pad(then, config.vocab_size)
        longest += then_BT.shape[1]
        kind = kind.with_step(then_BT.shape[1]) if isinstance(kind, KeptBy) else kind
    model = prepared(model, longest, strict=True)
    B, capacity = len(prompts), rounded(longest)
    sampling_B = SamplingParams.greedy(B, np)
    for i in range(B):
        sampling_B.set(i, temperature, top_k, top_p, min_p, seed + i)
    stop_X = jnp.asarray(list(stop_ids), jnp.int32)
    graphdef, params = nnx.split(model)
    state = prefill(graphdef, params, tokens_BT, count_B, sampling_B, stop_X, cache=kind, capacity=capacity)
    if then is not None:
        state = read_on(graphdef, params, state.cache, then_BT, then_B, sampling_B, stop_X)
    parts = [np.asarray(state.token_B)[None]]
    if on_tokens:
        on_tokens(parts[-1])
    for done in range(1, max_new_tokens, STRIDE):
        if not np.any(state.live_B):
            break
        state, new_SB = decode(
            graphdef, params, state, sampling_B, stop_X, min(STRIDE, max_new_tokens - done)
        )
        parts.append(np.asarray(new_SB)[: max_new_tokens - done])
        if on_tokens:
            on_tokens(parts[-1])
    return [[int(t) for t in column if t >= 0] for column in np.concatenate(parts).T]


@functools.partial(jax.jit, static_argnames=("graphdef", "cache", "capacity"))
def prefill(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    tokens_BT: jax.Array,
    count_B: jax.Array,
    sampling_B: SamplingParams,
    stop_X: jax.Array,
    *,
    cache: CacheMaker,
    capacity: int,
) -> GenerationState:
    """Runs the prompts into an empty cache and samples each row's first token."""
    model = nnx.merge(graphdef, params)
    hidden_BD, filled = read_prompts(model, tokens_BT, count_B, cache=cache, capacity=capacity)
    token_B = sample(model.head(hidden_BD), sampling_B, filled.start_B)
    return GenerationState(filled, token_B, ~_stops(token_B, stop_X))


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="cache")
def read_on(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    cache: RowCache,
    tokens_BT: jax.Array,
    count_B: jax.Array,
    sampling_B: SamplingParams,
    stop_X: jax.Array,
) -> GenerationState:
    """Reads more tokens behind what the cache holds and samples each row's next token."""
    model = nnx.merge(graphdef, params)
    out = model.forward(tokens_BT, cache=cache.with_counts(count_B), last_only=True)
    filled = cast(RowCache, out.cache)
    token_B = sample(model.head(out.hidden_BTD[:, 0]), sampling_B, filled.start_B)
    return GenerationState(filled, token_B, ~_stops(token_B, stop_X))


def read_prompts(
    model: Transformer, tokens_BT: jax.Array, count_B: jax.Array, *, cache: CacheMaker, capacity: int
) -> tuple[jax.Array, RowCache]:
    """hidden_BD of each row's last prompt token, and the cache that holds the prompts."""
    B, T = tokens_BT.shape
    held, block = cache.init(model.config, B, capacity).for_prompts(count_B, T)
    hidden_BD = jnp.zeros((B, model.config.d_model), model.config.dtype)
    for start in range(0, T, block):
        here_B = count_B if block == T else jnp.clip(count_B - start, 0, block)
        tokens_BC = tokens_BT[:, start : start + block]
        out = model.forward(tokens_BC, cache=held.with_counts(here_B), last_only=True)
        last_BD, held = out.hidden_BTD[:, 0], cast(RowCache, out.cache)
        hidden_BD = last_BD if block == T else jnp.where((here_B > 0)[:, None], last_BD, hidden_BD)
    return hidden_BD, held


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def decode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    state: GenerationState,
    sampling_B: SamplingParams,
    stop_X: jax.Array,
    steps: int | jax.Array,
) -> tuple[GenerationState, jax.Array]:
    """Runs `steps` <= `STRIDE` steps, fewer if no row is live. Returns tokens [STRIDE, B]; -1 = none."""
    model = nnx.merge(graphdef, params)

    def step(carry: Carry) -> Carry:
        i, state, new_SB = carry
        out = model.forward(
            state.token_B[:, None], cache=state.cache.with_counts(state.live_B.astype(jnp.int32))
        )
        token_B = sample(model.head(out.hidden_BTD[:, 0]), sampling_B, out.cache.start_B)
        token_B = jnp.where(state.live_B, token_B, state.token_B)
        new_SB = new_SB.at[i].set(jnp.where(state.live_B, token_B, -1))
        return i + 1, GenerationState(out.cache, token_B, state.live_B & ~_stops(token_B, stop_X)), new_SB

    def unfinished(carry: Carry) -> jax.Array:
        i, state, _ = carry
        return (i < steps) & jnp.any(state.live_B)

    empty_SB = jnp.full((STRIDE, state.token_B.shape[0]), -1, jnp.int32)
    _, state, new_SB = jax.lax.while_loop(unfinished, step, (jnp.int32(0), state, empty_SB))
    return state, new_SB


def cache_kind(
    cache: type[Contiguous | Kept], keep: Keep | None, config: ModelConfig, prompts: Sequence[int], new: int
) -> CacheMaker:
    """What `prefill` takes: the class of the cache, or what makes one that evicts. See `generate`.

    Args:
      prompts: their lengths in tokens. new: tokens to be generated.

    Raises:
      ValueError: the cache and `keep` contradict each other, or a prompt's budget holds nothing.
    """
    if keep is None:
        if issubclass(cache, Kept):
            raise ValueError("the cache Kept needs a budget; give keep=Keep(...)")
        return cache
    if cache not in (Ring, Kept):
        raise ValueError(
            f"keep={keep.scorer} evicts keys, which the cache {cache.__name__} does not; omit one"
        )
    check_model(keep, config, prompts, new)
    total = new if keep.share_of == "total" else 0
    return KeptBy(keep, rounded(max(prompts)), total, rounded(new) - total)


def prepared(model: Transformer, tokens: int, *, strict: bool = False) -> Transformer:
    """The model for sequences of at most `tokens` tokens: rotary scalings that depend on it are fixed.

    Args:
      strict: refuse learned positions that do not reach so far.

    Raises:
      ValueError: they do not.
    """
    config = model.config
    if config.positions == "learned" and strict and tokens > config.max_positions:
        raise ValueError(f"{tokens} positions are needed; the model has learned {config.max_positions}")
    if config.positions == "rope" and config.rope_scaling != "dynamic" and tokens > config.max_positions:
        warnings.warn(
            f"sequences of {tokens} tokens; the model was made for {config.max_positions} positions",
            stacklevel=3,
        )
    if (fitting := for_length(config, tokens)) is config:
        return model
    graphdef, params = nnx.split(model)
    model = nnx.merge(graphdef, params)
    model.config = fitting
    return model


def _stops(token_B: jax.Array, stop_X: jax.Array) -> jax.Array:
    return jnp.any(token_B[:, None] == stop_X[None], axis=-1)


def rounded(n: int) -> int:
    """`n` rounded up by at most 1/16 (at least to 16), so that nearby lengths share a compiled program."""
    step = max(16, 2 ** (n.bit_length() - 5))
    return -(-n // step) * step


def pad(prompts: Sequence[Sequence[int]], vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """tokens_BT, padded on the right to a rounded length, and the prompt lengths count_B.

    Raises:
      ValueError: no prompts, an empty prompt, or a token id outside the vocabulary.
    """
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {i} is empty; generation needs at least one token to continue")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompt {i} has token ids outside 0..{vocab_size - 1}")
    if not prompts:
        raise ValueError("no prompts were given")
    tokens_BT = np.zeros((len(prompts), rounded(max(map(len, prompts)))), np.int32)
    for row, prompt in zip(tokens_BT, prompts):
        row[: len(prompt)] = prompt
    return jnp.asarray(tokens_BT), jnp.asarray([len(prompt) for prompt in prompts], jnp.int32)
