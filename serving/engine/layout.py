"""What a model and a configuration come to: page groups, their sizes, and the list of programs."""

from collections.abc import Mapping
from dataclasses import dataclass

from mixattn.cache import Kind, Paged
from mixattn.spec import ModelConfig
from serving.config import EngineConfig
from serving.engine.steps import PLAIN, SamplingFeatures
from serving.kvcache.allocator import Group
from serving.kvcache.reservation import max_pages_spanned


@dataclass(frozen=True)
class Layout:
    """Page groups of an engine: full owners, then sliding ones.

    Attributes:
      kinds, groups: of each, how the model calls it, and its window and pages.
      span_tok: the most tokens a step adds to a request; with overlap a row is two calls ahead of what is
        known of it.
      table_pages: pages of a page table's row.
    """

    kinds: tuple[Kind, ...]
    groups: tuple[Group, ...]
    span_tok: int
    table_pages: int

    @classmethod
    def of(cls, model: ModelConfig, config: EngineConfig) -> "Layout":
        limits, page, slots = config.limits, config.page_size, config.max_slots
        span = max(limits.chunk_tok, max(limits.decode_steps) * (1 + config.overlap))
        whole = -(-config.max_request_tok // page)
        windows = {layer.window for layer in model.layers}
        pages: list[tuple[Kind, Group]] = []
        if None in windows:
            pages.append(("full", Group(None, config.num_pages or slots * whole + 1)))
        for window in sorted(w for w in windows if w is not None):
            most = min(whole, max_pages_spanned(window - 1 + span, page))
            pages.append(("sliding", Group(window, config.window_pages or 2 * slots * most + 1)))
        kinds, groups = zip(*pages)
        return cls(kinds, groups, span, whole)

    def cache(self, model: ModelConfig, config: EngineConfig) -> Paged:
        """Empty pools; no rows."""
        return Paged.init(
            model,
            pages={kind: group.num_pages for kind, group in zip(self.kinds, self.groups)},
            page_size=dict.fromkeys(self.kinds, config.page_size),
            batch=0,
            table_pages=dict.fromkeys(self.kinds, self.table_pages),
        )

    def page_bytes(self, model: ModelConfig, cache: Paged) -> Mapping[Kind, int]:
        """By kind, bytes of one page in all layers that own such pages."""
        layers = [model.layers[owner] for owner in model.owners]
        of = {
            kind: [x.index for x in layers if (x.window is None) == (kind == "full")] for kind in self.kinds
        }
        return {
            kind: sum(cache.pools[owner].nbytes for owner in of[kind]) // group.num_pages
            for kind, group in zip(self.kinds, self.groups)
        }


def chunk_sizes(config: EngineConfig) -> list[int]:
    """Those of the configuration, or 16, 64, 256, ..., and the chunk itself."""
    most = config.limits.chunk_tok
    return sorted({most, *(config.chunk_sizes or (16 * 4**i for i in range(8) if 16 * 4**i < most))})


def feature_sets(config: EngineConfig, vocab: int) -> list[SamplingFeatures]:
    """What programs are compiled to do: nothing extra, every extra, and every extra with prompts'."""
    rich = SamplingFeatures(config.penalties, min(config.logprobs, vocab))
    return sorted({PLAIN, rich} | ({rich._replace(prompt=True)} if config.prompt_logprobs else set()))
