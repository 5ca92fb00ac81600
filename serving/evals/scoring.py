"""How likely texts are to a model, by one forward pass of the prompt and one of all its continuations.

Axes: C continuations of one prompt, T tokens, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mixattn import hf
from mixattn.cache import Contiguous
from mixattn.evals.llm import (
    CallFailed,
    CallOptions,
    Completion,
    LanguageModel,
    Likelihood,
    Messages,
    Prompt,
    Usage,
)
from mixattn.generation import rounded
from mixattn.model import Transformer
from serving.evals import loading
from serving.evals.loading import Render
from serving.evals.settings import Setting, answer

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # padded lengths: few programs are compiled


class ScoringModel(LanguageModel):
    """A model that tells log-probabilities, and writes greedy replies one at a time.

    Args:
      render: messages -> prompt ids; encode, decode: text <-> ids of an answer.
      stop: ids that end a reply.
    """

    def __init__(
        self,
        model: Transformer,
        render: Render,
        encode: Callable[[str], list[int]],
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[int] = (),
    ):
        self._setting, self._decode, self._stop = Setting(model, Contiguous), decode, tuple(stop)
        self._graphdef, self._params = nnx.split(model)
        self._limit = model.config.max_positions
        self._render, self._encode = render, encode
        self._prompt: tuple[tuple[int, ...], Contiguous, jax.Array] | None = None  # the last one computed

    async def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        priority: int = 0,
        client: str = "",
        stop: Sequence[str] = (),
    ) -> Completion:
        ids = self._encode(prompt) if isinstance(prompt, str) else list(prompt)
        (row,) = answer(
            self._setting, [ids], length=padded(len(ids)), max_new_tokens=max_tokens, stop=self._stop
        )
        return Completion(self._decode(row), Usage(len(ids), len(row)))

    async def complete_messages(self, messages: Messages, **options: Unpack[CallOptions]) -> Completion:
        return await self.complete(self._render(messages), **options)

    async def likelihoods(
        self, messages: Messages, continuations: Sequence[str], *, priority: int = 0, client: str = ""
    ) -> list[Likelihood]:
        ids = tuple(self._render(messages))
        rows = [self._encode(text) for text in continuations]
        longest = max(map(len, rows), default=0)
        if len(ids) + longest > self._limit:
            raise CallFailed(f"{len(ids)} + {longest} tokens; the model has {self._limit}", transient=False)
        if not longest:
            return [Likelihood(0.0, 0) for _ in rows]
        if self._prompt is None or self._prompt[0] != ids:
            self._prompt = (ids, *self._run_prompt(ids))
        tokens_CT = np.zeros((len(rows), padded(longest)), np.int32)
        for row, given in zip(tokens_CT, rows):
            row[: len(given)] = given
        count_C = jnp.asarray([len(row) for row in rows], jnp.int32)
        cache = _widened(self._prompt[1], tokens_CT.shape[1])
        total_C = _continuations(
            self._graphdef, self._params, cache, self._prompt[2], jnp.asarray(tokens_CT), count_C
        )
        return [Likelihood(float(total), len(row)) for total, row in zip(np.asarray(total_C), rows)]

    def _run_prompt(self, ids: tuple[int, ...]) -> tuple[Contiguous, jax.Array]:
        tokens_1T = np.zeros((1, padded(len(ids))), np.int32)
        tokens_1T[0, : len(ids)] = ids
        return _prompt(
            self._graphdef, self._params, jnp.asarray(tokens_1T), jnp.asarray([len(ids)], jnp.int32)
        )


def load_scorer(path: Path) -> ScoringModel:
    """The model of a checkpoint."""
    tokenizer = hf.load_tokenizer(path)

    def encode(text: str) -> list[int]:
        return loading.encode(tokenizer, text)

    return ScoringModel(
        hf.load(path)[0], loading.renderer(path), encode, tokenizer.decode, tuple(hf.stop_ids(path))
    )


def padded(n: int) -> int:
    """The least of LENGTHS that holds n."""
    return next((length for length in LENGTHS if length >= n), rounded(n))


def _widened(cache: Contiguous, more: int) -> Contiguous:
    """The cache with room for `more` tokens."""

    def wide(x_BKSH: jax.Array) -> jax.Array:
        return jnp.pad(x_BKSH, ((0, 0), (0, 0), (0, more), (0, 0)))

    kv = {owner: (wide(k), wide(v)) for owner, (k, v) in cache.kv.items()}
    return Contiguous(kv, cache.start_B, empty=False)


@functools.partial(jax.jit, static_argnames="graphdef")
def _prompt(
    graphdef: nnx.GraphDef, params: nnx.State, tokens_1T: jax.Array, count_1: jax.Array
) -> tuple[Contiguous, jax.Array]:
    """The prompt's cache, and log-probabilities_V of the token that follows."""
    model = nnx.merge(graphdef, params)
    cache = Contiguous.init(model.config, 1, tokens_1T.shape[1]).with_counts(count_1)
    out = model.forward(tokens_1T, cache=cache, last_only=True)
    return out.cache, jax.nn.log_softmax(model.head(out.hidden_BTD[0, 0]))


@functools.partial(jax.jit, static_argnames="graphdef")
def _continuations(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    cache: Contiguous,
    first_V: jax.Array,
    tokens_CT: jax.Array,
    count_C: jax.Array,
) -> jax.Array:
    """Summed log-probabilities_C of the first `count_C` tokens of each row after the prompt."""
    model, (C, T) = nnx.merge(graphdef, params), tokens_CT.shape
    wide = jax.tree.map(lambda x: jnp.repeat(x, C, axis=0), cache).with_counts(count_C)
    hidden_CTD = model.forward(tokens_CT, cache=wide).hidden_BTD
    later_CTV = jax.nn.log_softmax(model.head(hidden_CTD[:, :-1]))
    later_CT = jnp.take_along_axis(later_CTV, tokens_CT[:, 1:, None], axis=2)[..., 0]
    each_CT = jnp.concatenate([first_V[tokens_CT[:, :1]], later_CT], axis=1)
    return jnp.sum(jnp.where(jnp.arange(T)[None] < count_C[:, None], each_CT, 0.0), axis=1)
