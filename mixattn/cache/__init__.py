"""KV caches: contiguous, ring and paged, behind the protocol of `mixattn.cache.protocol`."""

from mixattn.cache.contiguous import Contiguous, Ring
from mixattn.cache.paged import FULL, PAGE_KINDS, SLIDING, Kind, Paged, PageKind, kind_of
from mixattn.cache.protocol import Cache, FullSequence

__all__ = [
    "FULL",
    "PAGE_KINDS",
    "SLIDING",
    "Cache",
    "Contiguous",
    "FullSequence",
    "Kind",
    "PageKind",
    "Paged",
    "Ring",
    "kind_of",
]
