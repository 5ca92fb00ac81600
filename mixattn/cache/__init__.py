"""KV caches:

contiguous, ring, paged and kept (with eviction), behind the protocol of `mixattn.cache.protocol`.
"""

from mixattn.cache.contiguous import Contiguous, Ring
from mixattn.cache.kept import Kept, KeptBy
from mixattn.cache.paged import FULL, PAGE_KINDS, SLIDING, Kind, Paged, PageKind, kind_of
from mixattn.cache.protocol import Cache, CacheMaker, FullSequence, RowCache

__all__ = [
    "FULL",
    "PAGE_KINDS",
    "SLIDING",
    "Cache",
    "CacheMaker",
    "Contiguous",
    "FullSequence",
    "Kept",
    "KeptBy",
    "Kind",
    "PageKind",
    "Paged",
    "Ring",
    "RowCache",
    "kind_of",
]
