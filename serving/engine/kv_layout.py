"""How an engine's KV cache is laid out: the kinds of page groups, host side and device side, and their sizes.

A `KVKind` joins the two sides: the device's `PageKind` says which layers use it and how their K/V lie in
pages, the host's `KVGroup` which pages a request needs and may release. A further kind is one class on each
side and an entry in the list given to the engine.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from mixattn.cache import FULL, SLIDING, Kind, Paged, PageKind, kind_of
from mixattn.spec import ModelConfig
from serving.config import EngineConfig
from serving.kvcache.groups import FullGroup, KVGroup, SlidingGroup


def span_tok(config: EngineConfig) -> int:
    """The most tokens one step adds to a request.

    With overlap a row is two calls ahead of what the host knows of it.
    """
    limits = config.limits
    return max(limits.chunk_tok, max(limits.decode_steps) * (1 + config.overlap))


@dataclass(frozen=True)
class KVKind:
    """One kind of page group.

    Attributes:
      pages: the device side.
      group: the host side, sized for a model and a configuration.
    """

    pages: PageKind
    group: Callable[[ModelConfig, EngineConfig], KVGroup]


def _full_group(model: ModelConfig, config: EngineConfig) -> KVGroup:
    longest = -(-config.max_request_tok // config.page_size)
    return FullGroup(config.num_pages or config.max_slots * longest + 1)


def _sliding_group(model: ModelConfig, config: EngineConfig) -> KVGroup:
    longest = -(-config.max_request_tok // config.page_size)
    window = SlidingGroup(model.window, num_pages=2).peak_pages(span_tok(config), config.page_size)
    # Every slot's worst case twice: the second half is for cached prefixes.
    return SlidingGroup(model.window, config.window_pages or 2 * config.max_slots * min(longest, window) + 1)


KV_KINDS = (KVKind(FULL, _full_group), KVKind(SLIDING, _sliding_group))


@dataclass(frozen=True)
class KVLayout:
    """Page groups of an engine, in the order of their kinds.

    Attributes:
      kinds: all kinds of the engine, with or without layers of this model.
      names, groups: of the kinds that this model's owner layers use.
    """

    kinds: tuple[PageKind, ...]
    names: tuple[Kind, ...]
    groups: tuple[KVGroup, ...]

    @classmethod
    def of(cls, model: ModelConfig, config: EngineConfig, kinds: Sequence[KVKind] = KV_KINDS) -> "KVLayout":
        pages = tuple(kind.pages for kind in kinds)
        used = {kind_of(model.layers[owner], pages).name for owner in model.owners}
        present = [kind for kind in kinds if kind.pages.name in used]
        groups = tuple(kind.group(model, config) for kind in present)
        return cls(pages, tuple(kind.pages.name for kind in present), groups)

    def cache(self, model: ModelConfig, config: EngineConfig) -> Paged:
        """The shapes of empty pools, in place of arrays; no rows."""
        page = config.page_size
        init = functools.partial(
            Paged.init,
            model,
            pages={name: group.num_pages for name, group in zip(self.names, self.groups)},
            page_size=dict.fromkeys(self.names, page),
            batch=0,
            table_pages={
                name: group.table_pages(config.max_request_tok, page)
                for name, group in zip(self.names, self.groups)
            },
            dtype=config.kv_dtype or None,
            kinds=self.kinds,
        )
        return jax.eval_shape(init)

    def page_bytes(self, model: ModelConfig, cache: Paged) -> Mapping[Kind, int]:
        """By kind, bytes of one page in all layers that own such pages."""
        total = dict.fromkeys(self.names, 0)
        for owner in model.owners:
            total[kind_of(model.layers[owner], self.kinds).name] += cache.pools[owner].nbytes
        return {name: total[name] // group.num_pages for name, group in zip(self.names, self.groups)}
