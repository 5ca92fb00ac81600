"""What the compiled programs take and return: the device state, batches, and a step's output.

Axes: B slots, R requests of a call, C tokens of a chunk, P pages of a table row, N decode steps, V
vocabulary, E stop ids, K alternatives with log-probabilities.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mixattn.cache import Kind, Paged
from mixattn.model import Transformer
from mixattn.sample import SamplingParams
from serving.config import STOP_IDS
from serving.engine.logits import Logprobs, PenaltyRows

NOT_FINITE = -2  # in place of a token: logits, or hidden states of a prompt, held NaN or infinity


class SplitModel(NamedTuple):
    """A model without its weights, hashable.

    Programs take the weights as a flat list: jax flattens its arguments at every call, nnx variables in
    Python, which was a third of a call's own time.
    """

    graphdef: nnx.GraphDef[Transformer]
    tree: Any

    @classmethod
    def split(cls, model: Transformer) -> tuple["SplitModel", list[jax.Array]]:
        graphdef, params = nnx.split(model)
        flat, tree = jax.tree.flatten(params)
        return cls(graphdef, tree), flat

    def model(self, params: Sequence[jax.Array]) -> Transformer:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.tree, params))


class SamplingFeatures(NamedTuple):
    """What a program does beyond plain sampling. A batch runs with the features of its most demanding row.

    Attributes:
      penalties: penalties and bias.
      top: log-probabilities of the token and this many alternatives; -1 = none.
      prompt: also of the prompt's tokens (prefill).
      grammar: tokens that a grammar forbids.
    """

    penalties: bool = False
    top: int = -1
    prompt: bool = False
    grammar: bool = False


PLAIN = SamplingFeatures()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "token_B",
        "position_B",
        "sampling_B",
        "stop_BE",
        "min_end_B",
        "logprobs_B",
        "penalties",
        "allowed_BW",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class SlotRows:
    """What the device keeps for each slot.

    Attributes:
      token_B: newest token, whose KV is not in the pages yet.
      position_B: its position.
      sampling_B: how to sample the row.
      stop_BE: ids that end it; -1 = none.
      min_end_B: the first position at which it may end.
      logprobs_B: whether log-probabilities are asked for.
      penalties: if compiled in.
      allowed_BW: only while a program runs: the batch's bit masks of allowed tokens.
    """

    token_B: jax.Array
    position_B: jax.Array
    sampling_B: SamplingParams
    stop_BE: jax.Array
    min_end_B: jax.Array
    logprobs_B: jax.Array
    penalties: PenaltyRows | None
    allowed_BW: jax.Array | None = None

    @classmethod
    def empty(cls, slots: int, vocab: int = 0) -> "SlotRows":
        """`vocab`: 0 = without penalties."""
        # Every leaf its own buffer: donating one buffer under two names is an error.
        token_B, position_B, min_end_B = (jnp.zeros(slots, jnp.int32) for _ in range(3))
        stop_BE = jnp.full((slots, STOP_IDS), -1, jnp.int32)
        penalties = PenaltyRows.none(slots, vocab) if vocab else None
        logprobs_B = jnp.zeros(slots, bool)
        return cls(
            token_B, position_B, SamplingParams.greedy(slots), stop_BE, min_end_B, logprobs_B, penalties
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["cache", "rows"], meta_fields=[])
@dataclass(frozen=True)
class DeviceState:
    """Everything on the device that a step changes. Donated to every call."""

    cache: Paged
    rows: SlotRows


class PrefillBatch(NamedTuple):
    """Chunks to compute; numpy on the host.

    Attributes:
      tokens_RC, start_R, count_R: chunk r is `count_R[r]` tokens from position `start_R[r]`; 0 = padding.
      target_RC: the prompt's token after each, for log-probabilities of prompts.
      tables: by kind, the requests' page table rows.
      slot_R: slot to install the request in after its last chunk; the number of slots = none.
      known_R: its next token if known (it was preempted), -1 = sample it.
      sampling_R, stop_RE, min_end_R, logprobs_R, penalties: its sampling; penalties where compiled in.
      allowed_RW: see `DecodeBatch`.
    """

    tokens_RC: Any
    start_R: Any
    count_R: Any
    target_RC: Any
    tables: Mapping[Kind, Any]
    slot_R: Any
    known_R: Any
    sampling_R: SamplingParams
    stop_RE: Any
    min_end_R: Any
    logprobs_R: Any
    penalties: PenaltyRows | None
    allowed_RW: Any = None


class DecodeBatch(NamedTuple):
    """Rows to decode; numpy on the host.

    Attributes:
      tables: by kind, their page tables.
      slot_R: their slots; the number of slots = padding. With as many rows as slots, row r is slot r.
      left_R: tokens each may still produce in this call; 0 for rows that do not decode.
      allowed_RW: uint32, a bit per token of the vocabulary; where grammars are compiled in. It holds for one
        token, so a row under a grammar decodes one step per call.
    """

    tables: Mapping[Kind, Any]
    slot_R: Any
    left_R: Any
    allowed_RW: Any = None


class StepOutput(NamedTuple):
    """What a program returns.

    Attributes:
      token: next_R of a prefill; token_NR of a decode, -1 where a row produced none.
      logprobs: of these tokens, with the same leading axes.
      prompt: log-probabilities of `target_RC`.
    """

    token: Any
    logprobs: Logprobs | None = None
    prompt: Logprobs | None = None
