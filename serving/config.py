"""The configuration of an engine: plain values, checked without importing jax."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

STOP_IDS = 8  # ids the device compares each token with

QUANTIZE = ("", "int8")  # how weights may be stored
KV_DTYPES = ("", "bfloat16", "int8")  # and keys and values
KV_DTYPE_HELP = "Type that K/V are stored in: int8 takes about a quarter of float32; the model's by default."

type Admission = Literal["reserve", "optimistic"]


@dataclass(kw_only=True)
class Limits:
    """What one step may do.

    Attributes:
      chunk_tok: prompt tokens that one request computes in a step, at most.
      step_tok: prompt tokens of all requests together in a step.
      decode_steps: allowed numbers of decode steps per call (multi-step decode); a `range` for any.
      admit_every: decode steps between two attempts to admit while a request waits and a slot is free.
      mixed: decode rows run in the same step as prompt chunks; otherwise the chunks go first, alone.
      share_cold: a request whose next page a running one is computing waits for that page instead of
        computing it too.
      damped: whether optimistic admission learns from preemptions how many requests to run at once.
      admission: `reserve` reserves what a request needs until its end, so that none is ever preempted
        (`serving.kvcache.reservation`; the fairness bounds assume it); `optimistic` only its prompt's pages.
    """

    chunk_tok: int = 64
    step_tok: int = 256
    decode_steps: Sequence[int] = (8, 4, 1)
    admit_every: int = 1
    mixed: bool = True
    share_cold: bool = True
    admission: Admission = "reserve"
    damped: bool = True

    def check(self) -> None:
        if self.chunk_tok < 1 or self.step_tok < self.chunk_tok:
            raise ValueError(f"step_tok={self.step_tok} must be at least chunk_tok={self.chunk_tok} >= 1")
        if 1 not in self.decode_steps or not all(isinstance(n, int) and n >= 1 for n in self.decode_steps):
            raise ValueError(
                f"decode_steps={self.decode_steps} must be whole numbers from 1 up, 1 among them"
            )
        if self.admit_every < 1:
            raise ValueError(f"admit_every={self.admit_every} must be at least 1")
        if self.admission not in ("reserve", "optimistic"):
            raise ValueError(f"admission={self.admission!r} is neither 'reserve' nor 'optimistic'")


@dataclass(kw_only=True)
class OffloadSettings:
    """A mixture model whose experts are read while they are used (see `serving.offload`).

    Attributes:
      device_memory_gb: GiB that the engine may take; 0 = everything is in memory, without offloading.
      mode: stream or cache; "" = as the plan chooses. schedule: of streamed passes; "" likewise.
      cache_policy: lru or frequency.
      prefetch: mode cache reads the experts that the next layer would choose now, before it is asked.
      quantize: "int8": experts in 8 bits, rounded as they are read; "" = as they are stored.
    """

    device_memory_gb: float = 0.0
    mode: str = ""
    schedule: str = ""
    cache_policy: str = "lru"
    prefetch: bool = False
    quantize: str = ""

    def check(self) -> None:
        if self.device_memory_gb < 0:
            raise ValueError(f"offload.device_memory_gb is {self.device_memory_gb}; it must be at least 0")
        for name, known in (
            ("mode", ("", "stream", "cache")),
            ("cache_policy", ("lru", "frequency")),
            ("quantize", QUANTIZE),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"offload.{name} is {value!r}; known: {', '.join(filter(None, known))}")


@dataclass(kw_only=True)
class KeepSettings:
    """Eviction: after its prompt, a request goes on in a slab of fixed size (see `mixattn.keep.Keep`).

    Attributes:
      slab_tok: keys that a slot keeps per layer and key/value head, on the mean of the layers; 0 = off.
      scorer: what ranks keys, unless a request names another. scorers: others that are compiled in.
      budget_tok, budget_share: a smaller default, in keys or as a share of what `share_of` names; 0 = all.
      recent_tok, recent_share: newest keys that are never evicted, in keys or, if that is 0, of the budget.
      share_of, sinks, when, promotion, scope, positions, allocation, window, pool, seed: see `Keep`.
      snapshots: ends of cached prefixes whose scores are kept, so that requests whose scorer reads every
        query find them; each takes 4 bytes a token, owner and key/value head of the longest request.
      prefilling: prompts that may collect scores at once; as many bytes each.
      full_decode: compile a second decode call, for requests that want no eviction and do not fit a slab.
    """

    slab_tok: int = 0
    scorer: str = "h2o"
    scorers: tuple[str, ...] = ()
    budget_tok: int = 0
    budget_share: float = 0.0
    share_of: str = "prompt"
    recent_tok: int = 0
    recent_share: float = 0.5
    sinks: int | None = None
    when: str = "decode"
    promotion: str = "compete"
    scope: str = "all_consumers"
    positions: str = "original"
    allocation: str = "uniform"
    window: int = 32
    pool: int = 5
    seed: int = 0
    snapshots: int = 16
    prefilling: int = 4
    full_decode: bool = True

    def check(self) -> None:
        for name, low in (("slab_tok", 0), ("snapshots", 0), ("prefilling", 1)):
            if (value := getattr(self, name)) < low:
                raise ValueError(f"keep.{name} is {value}; it must be at least {low}")
        if self.slab_tok and self.budget_tok > self.slab_tok:
            raise ValueError(f"keep.budget_tok is {self.budget_tok}, and keep.slab_tok is {self.slab_tok}")
        if self.budget_tok and self.budget_share:
            raise ValueError(
                f"keep.budget_tok is {self.budget_tok} and keep.budget_share {self.budget_share}; give one"
            )

    @property
    def budget(self) -> int | float:
        """Keys (int), or a share (float)."""
        return self.budget_share or self.budget_tok or self.slab_tok

    @property
    def recent(self) -> int | float:
        """Keys (int), or a share of the budget (float)."""
        return self.recent_tok or self.recent_share


@dataclass(kw_only=True)
class EngineConfig:
    """How much the engine holds and in what order it serves.

    Attributes:
      max_slots: requests that run at once.
      page_size: tokens per page.
      num_pages: pages of the full-attention pool, the null page included; 0 = enough for every slot.
      window_pages: the same for sliding layers; 0 = every slot's worst case twice, the second half for
        cached prefixes.
      max_request_tok: the longest request, prompt and outputs together.
      policy, policy_options: see `serving.fair.make`.
      eos_ids: tokens that end every request, unless its sampling says `ignore_eos`.
      prefill_rows: requests per call, one prefill program for each number.
      chunk_sizes: tokens per request of prefill programs, beside `limits.chunk_tok`; empty = 16, 64, 256 and
        so on. More sizes pad less and start slower.
      decode_rows: rows of smaller decode programs beside the one of all slots. They are faster while few
        requests are live; but the tiling of a product depends on its shape, so a request's log-probabilities
        may differ in their last bits with how many others run.
      reuse: cache computed prompts for later requests.
      penalties: compile in penalties and `logit_bias`; 9 bytes per slot and vocabulary entry.
      logprobs: alternatives whose log-probabilities a request may ask for; -1 = none compiled in.
      prompt_logprobs: compile in those of prompts too.
      grammar: compile in masks of the tokens that a request's grammar allows.
      layers_per_program: layers that one program runs. Fewer compile faster where layers are alike, since
        they share programs, but make more calls per decode step (`results/serving/segments.csv`). 0 = all;
        -1 = a few of a deep stack, all of a shallow one.
      overlap: start the next decode step before the last one's tokens are read, where its outcome does not
        matter. Hides host time behind an accelerator; on a CPU both share the cores.
      quantize: "int8" rounds the model's weights to 8 bits as it is taken (`mixattn.quantize`); "" = as they
        are. A model that is quantised already needs nothing.
      kv_dtype: type that K/V are stored in: "bfloat16", or "int8" with a scale per token and head (a quarter
        of float32's bytes and four more); "" = the model's. On a CPU it saves memory, not time.
      debug: after every step, check every invariant and fill freed pages with NaN. Slow.
      offload: read experts while they are used; slots and limits then follow from its plan.
      keep: let requests go on in slabs of fixed size.
    """

    max_slots: int = 8
    page_size: int = 16
    num_pages: int = 0
    window_pages: int = 0
    max_request_tok: int = 256
    policy: str = "fcfs"
    policy_options: dict[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    eos_ids: tuple[int, ...] = ()
    prefill_rows: tuple[int, ...] = (1, 4)
    chunk_sizes: tuple[int, ...] = ()
    decode_rows: tuple[int, ...] = ()
    reuse: bool = True
    penalties: bool = False
    logprobs: int = -1
    prompt_logprobs: bool = False
    grammar: bool = False
    layers_per_program: int = -1
    overlap: bool = False
    quantize: str = ""
    kv_dtype: str = ""
    debug: bool = False
    offload: OffloadSettings = field(default_factory=OffloadSettings)
    keep: KeepSettings = field(default_factory=KeepSettings)

    def check(self) -> None:
        self.limits.check()
        self.offload.check()
        self.keep.check()
        if self.keep.slab_tok and self.layers_per_program > 0:
            raise ValueError(
                f"keep.slab_tok is {self.keep.slab_tok} and layers_per_program {self.layers_per_program};"
                " layers that evict run in one program (0 or -1)"
            )
        if self.keep.slab_tok and self.offload.device_memory_gb:
            raise ValueError(
                f"keep.slab_tok is {self.keep.slab_tok} and offload.device_memory_gb"
                f" {self.offload.device_memory_gb}; an engine that streams experts does not evict"
            )
        least = {"max_slots": 1, "page_size": 1, "max_request_tok": 2, "logprobs": -1}
        least["layers_per_program"] = -1
        least |= {name: 2 for name in ("num_pages", "window_pages") if getattr(self, name) != 0}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(f"{name} is {value}; it must be at least {low}")
        if not self.prefill_rows or min(self.prefill_rows) < 1:
            raise ValueError(f"prefill_rows={self.prefill_rows} must name at least one number from 1 up")
        if any(not 1 <= r <= self.max_slots for r in self.decode_rows):
            raise ValueError(f"decode_rows={self.decode_rows} must lie in 1..max_slots={self.max_slots}")
        if min(self.eos_ids, default=0) < 0:
            raise ValueError(f"eos_ids={self.eos_ids} must be ids from 0 up")
        if any(not 1 <= c <= self.limits.chunk_tok for c in self.chunk_sizes):
            most = self.limits.chunk_tok
            raise ValueError(f"chunk_sizes={self.chunk_sizes} must lie in 1..limits.chunk_tok={most}")
        if self.quantize not in QUANTIZE:
            raise ValueError(f"quantize={self.quantize!r} must be one of {', '.join(map(repr, QUANTIZE))}")
        if self.kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype={self.kv_dtype!r} must be one of {', '.join(map(repr, KV_DTYPES))}")
        if len(self.eos_ids) > STOP_IDS:
            raise ValueError(f"{len(self.eos_ids)} eos_ids; the device compares at most {STOP_IDS}")
        if self.prompt_logprobs and self.logprobs < 0:
            raise ValueError(f"prompt_logprobs is on, but logprobs is {self.logprobs}; give it 0 or more")
