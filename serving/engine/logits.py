"""Logits processors: what happens to each row's logits between the model and sampling, on the device.

    1. penalties: repetition, then frequency and presence      3. stop ids masked below `min_tokens`
    2. bias, then what a grammar forbids                       4. log-probabilities, then `mixattn.sample`

A row without penalties and bias keeps its logits bit for bit, so it does not matter which program serves it.

Axes: B rows, V vocabulary, E stop ids, K alternatives.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from serving.request import Logprob, Sampling


class PenaltyRows(NamedTuple):
    """What penalties and bias need of each row.

    Attributes:
      active_B: bool, whether a row has any penalty or bias.
      penalty_B3: repetition, frequency, presence; (1, 0, 0) = none.
      bias_BV: added to logits.
      prompt_BV: bool, tokens of the prompt.
      count_BV: int32, how often each token was output.
    """

    active_B: Any
    penalty_B3: Any
    bias_BV: Any
    prompt_BV: Any
    count_BV: Any

    @classmethod
    def none(cls, rows: int, vocab: int, numpy: Any = jnp) -> "PenaltyRows":
        """Rows without penalties and bias, as arrays of `jax.numpy` or of `numpy`."""
        penalty_B3 = numpy.zeros((rows, 3), "float32") + numpy.asarray([1, 0, 0], "float32")[None]
        wide = rows, vocab
        return cls(
            numpy.zeros(rows, "bool"),
            penalty_B3,
            numpy.zeros(wide, "float32"),
            numpy.zeros(wide, "bool"),
            numpy.zeros(wide, "int32"),
        )

    def set(self, row: int, sampling: Sampling, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """Sets one row in place; for numpy arrays."""
        penalties = sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty
        self.active_B[row] = sampling.has_penalties
        self.penalty_B3[row] = penalties
        for id, bias in sampling.logit_bias.items():
            self.bias_BV[row, id] = bias
        self.prompt_BV[row, np.asarray(prompt_ids)] = True
        np.add.at(self.count_BV[row], np.asarray(output_ids, np.int32), 1)

    def counted(self, token_B: jax.Array, live_B: jax.Array) -> "PenaltyRows":
        """The rows after `live_B` produced `token_B`; a token below 0 is none."""
        V = self.count_BV.shape[1]
        at_B = jnp.where(live_B & (token_B >= 0), token_B, V)
        return self._replace(count_BV=self.count_BV.at[jnp.arange(len(at_B)), at_B].add(1, mode="drop"))


def apply_penalties(logits_BV: jax.Array, rows: PenaltyRows) -> jax.Array:
    """Logits after penalties and bias."""
    repetition_B1, frequency_B1, presence_B1 = (rows.penalty_B3[:, i, None] for i in range(3))
    seen_BV = rows.prompt_BV | (rows.count_BV > 0)
    repeated_BV = jnp.where(logits_BV > 0, logits_BV / repetition_B1, logits_BV * repetition_B1)
    logits_BV = jnp.where(seen_BV, repeated_BV, logits_BV)
    logits_BV -= frequency_B1 * rows.count_BV.astype(jnp.float32)
    logits_BV -= presence_B1 * (rows.count_BV > 0).astype(jnp.float32)
    return logits_BV + rows.bias_BV


def mask_stop_tokens(logits_BV: jax.Array, stop_BE: jax.Array, young_B: jax.Array) -> jax.Array:
    """-inf at the stop ids (-1 = none) of rows that may not stop yet."""

    def hide(logits_BV: jax.Array) -> jax.Array:
        V = logits_BV.shape[1]
        at_BE = jnp.where(young_B[:, None] & (stop_BE >= 0), stop_BE, V)
        return logits_BV.at[jnp.arange(len(at_BE))[:, None], at_BE].set(-jnp.inf, mode="drop")

    return jax.lax.cond(jnp.any(young_B), hide, lambda logits_BV: logits_BV, logits_BV)


ALL_ALLOWED = 0xFFFFFFFF  # a word of a mask that forbids nothing


def mask_forbidden(logits_BV: jax.Array, allowed_BW: jax.Array) -> jax.Array:
    """-inf at tokens whose bit is not set: bit `v % 32` of word `v // 32`."""

    def hide(logits_BV: jax.Array) -> jax.Array:
        B, V = logits_BV.shape
        bits = allowed_BW[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None]
        allowed_BV = (bits & jnp.uint32(1)).reshape(B, -1)[:, :V] > 0
        return jnp.where(allowed_BV, logits_BV, -jnp.inf)

    masked = jnp.any(allowed_BW != jnp.uint32(ALL_ALLOWED))
    return jax.lax.cond(masked, hide, lambda logits_BV: logits_BV, logits_BV)


class Logprobs(NamedTuple):
    """Log-probabilities of one token per row and of the K likeliest; leading axes are the caller's."""

    chosen: Any
    top_K: Any
    top_id_K: Any

    def at(self, index: Any, id: int, k: int) -> Logprob:
        """One row's log-probabilities as plain values, with the `k` best alternatives; for numpy arrays.

        What cannot be drawn, for example a stop token before `min_tokens`, is no alternative.
        """
        ids, values = self.top_id_K[index][:k].tolist(), self.top_K[index][:k].tolist()
        top = tuple((id, value) for id, value in zip(ids, values) if value > -math.inf)
        return Logprob(id, float(self.chosen[index]), top)


def logprobs(logits_XV: jax.Array, token_X: jax.Array, k: int) -> Logprobs:
    """Log-probabilities of `token_X` (below 0: of token 0) and the `k` likeliest, ties to the lower id."""
    log_p_XV = jax.nn.log_softmax(logits_XV, axis=-1)
    chosen_X = jnp.take_along_axis(log_p_XV, jnp.maximum(token_X, 0)[:, None], axis=1)[:, 0]
    top_XK, id_XK = jax.lax.top_k(log_p_XV, k)
    return Logprobs(chosen_X, top_XK, id_XK)
