"""KV caches: contiguous, ring and paged, behind the protocol of `mixattn.cache.protocol`."""

from mixattn.cache.contiguous import Contiguous, Ring
from mixattn.cache.paged import Kind, Paged, kind
from mixattn.cache.protocol import Cache, FullSequence

__all__ = ["Cache", "Contiguous", "FullSequence", "Kind", "Paged", "Ring", "kind"]
