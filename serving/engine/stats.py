"""Counters and a snapshot of an engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixattn.cache import Kind


@dataclass(kw_only=True)
class EngineCounters:
    """Sums since the engine started.

    Attributes:
      steps, decode_steps: engine steps, and decode steps on the device as planned.
      ahead: steps started before the one before them was read.
      decode_rows: sum over decode steps of the rows that were planned in them.
      prompt_tok, hit_tok, output_tok: tokens admitted, of those found in the cache, produced.
      arrived: outputs that were requested; each is live or finished.
      finished: ended outputs by reason.
      preemptions: times a running request lost its memory.
      resets: times a program failed and the device state was rebuilt.
      evictions: keys that slabs have lost, over owners and key/value heads.
      scored_tok: prompt tokens whose queries voted on keys; each costs one more product with its prefix.
      host_s, device_s: step time spent on scheduling and bookkeeping, and on waiting for programs.
    """

    steps: int = 0
    decode_steps: int = 0
    ahead: int = 0
    decode_rows: int = 0
    prompt_tok: int = 0
    hit_tok: int = 0
    output_tok: int = 0
    preemptions: int = 0
    resets: int = 0
    arrived: int = 0
    evictions: int = 0
    scored_tok: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    host_s: float = 0.0
    device_s: float = 0.0


@dataclass(kw_only=True)
class EngineStats(EngineCounters):
    """A snapshot of an engine and its counters.

    Attributes:
      programs, compile_s: compiled programs and the seconds each took. Fixed after start-up.
      pages: by kind, (in use by requests, cached, free, total).
      bytes_held: KV bytes of the pages in use by requests or cached.
      policy_failure: why the policy was replaced by `fcfs`, or None.
      slab_bytes, votes_bytes: of all slots' slabs, and of the rows of scores, snapshots included.
      snapshots: ends of cached prefixes whose scores are kept. hits_lost: requests that found less than is
        cached because no snapshot ends there.
      layers_for_scores: layers that compute all tokens of a prompt only because their queries vote.
    """

    programs: int
    compile_s: Mapping[str, float]
    pages: Mapping[Kind, tuple[int, int, int, int]]
    bytes_held: int
    running: int
    waiting: int
    slots: int
    policy_failure: str | None
    slab_bytes: int = 0
    votes_bytes: int = 0
    snapshots: int = 0
    hits_lost: int = 0
    layers_for_scores: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of admitted prompt tokens that were found in the cache."""
        return self.hit_tok / self.prompt_tok if self.prompt_tok else 0.0

    @property
    def occupancy(self) -> float:
        """Mean share of slots that are busy in a decode step."""
        return self.decode_rows / (self.decode_steps * self.slots) if self.decode_steps else 0.0
