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
from mixattn.cache.kept_pages import PagedSlab
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


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["slabs", "votes", "scorer_Z"], meta_fields=[]
)
@dataclass(frozen=True)
class SlabState:
    """What an engine that evicts has beside pages.

    Attributes:
      slabs: full owner -> its slabs, one for each slot.
      votes: full owner -> [X, K, S], float32: rows of scores by position; see `serving.kvcache.vote_rows`.
      scorer_Z: each slot's scorer, by number.
    """

    slabs: dict[int, PagedSlab]
    votes: dict[int, jax.Array]
    scorer_Z: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=["cache", "rows", "kept"], meta_fields=[])
@dataclass(frozen=True)
class DeviceState:
    """Everything on the device that a step changes. Donated to every call.

    `kept`: only in an engine that evicts.
    """

    cache: Paged
    rows: SlotRows
    kept: SlabState | None = None


class PrefillBatch(NamedTuple):
    """Chunks to compute; numpy on the host.

    Attributes:
      tokens_RC, start_R, count_R: chunk r is `count_R[r]` tokens from position `start_R[r]`; 0 = padding.
      target_RC: the prompt's token after each, for log-probabilities of prompts.
      tables: by kind, the requests' page table rows.
      slot_R: slot to install the request in after its last chunk; the number of slots = none.
      known_R: its next token if known (it was preempted, or the request gave it), -1 = sample it.
      sampling_R, stop_RE, min_end_R, logprobs_R, penalties: its sampling; penalties where compiled in.
      allowed_RW: see `DecodeBatch`.
      votes: where queries vote on keys.
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
    votes: "VotePlaces | None" = None


class VotePlaces(NamedTuple):
    """Where the votes of chunks go; rows of `SlabState.votes`, of which row 0 holds zeros.

    Attributes:
      first_R: position from which on a row's queries vote.
      from_R, to_R: row that the chunk adds to, and row that the sum goes to; past the last = nowhere.
      mark_R: row that gets a copy, a snapshot of the scores at the chunk's end; likewise.
    """

    first_R: Any
    from_R: Any
    to_R: Any
    mark_R: Any


class SettleBatch(NamedTuple):
    """One prompt that moves to a slab; numpy on the host.

    Attributes:
      table_P: its row of the full pool's page table. tokens: its length.
      slot, scorer: whose slab, and the number of its scorer. votes_row: of `SlabState.votes`.
      cut_O3, limits_O3: by full owner, heavy, recent and sinks of the cut and of the steps after it.
      moves: by kind, pages from and to, [2, X]; 0 = none.
    """

    table_P: Any
    tokens: Any
    slot: Any
    scorer: Any
    votes_row: Any
    cut_O3: Any
    limits_O3: Any
    moves: Mapping[Kind, Any]


class DecodeBatch(NamedTuple):
    """Rows to decode; numpy on the host.

    Attributes:
      tables: by kind, their page tables.
      slot_R: their slots; the number of slots = padding. With as many rows as slots, row r is slot r.
      left_R: tokens each may still produce in this call; 0 for rows that do not decode.
      allowed_RW: uint32, a bit per token of the vocabulary; where grammars are compiled in. It holds for one
        token, so a row under a grammar decodes one step per call.
      known_RN: in an engine that evicts: tokens that steps yield in place of sampled ones, -1 = sample.
    """

    tables: Mapping[Kind, Any]
    slot_R: Any
    left_R: Any
    allowed_RW: Any = None
    known_RN: Any = None


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
