"""Page pools for a budget of KV bytes, so that the most requests of a given length run at once."""

from dataclasses import dataclass

from mixattn.spec import ModelConfig, kv_bytes_by_owner
from serving.config import Limits
from serving.kvcache.reservation import FullReservations, SlidingReservations


@dataclass(frozen=True)
class Split:
    """Pools for one budget, as `EngineConfig` takes them.

    Attributes:
      requests: how many of the given length run at once (slots to give the engine).
      num_pages, window_pages: pages of the full and of the sliding pool, null pages included; 0 where the
        model has no such owners.
      pool_bytes: bytes of both together.
    """

    requests: int
    num_pages: int
    window_pages: int
    pool_bytes: int


def split(
    config: ModelConfig,
    budget_bytes: int,
    *,
    request_tok: int,
    page_size: int,
    limits: Limits,
    span_tok: int = 0,
    kv_dtype: str = "",
) -> Split:
    """Splits `budget_bytes` for requests of `request_tok` tokens each, admitted with `reserve`.

    A request takes whole pages of its length from full owners, and from sliding ones what it reserves,
    beside one common reserve (`serving.kvcache.reservation`). What is left over becomes full pages, for
    cached prompts.

    Args:
      span_tok: the most tokens a step adds to a request, if that is more than a chunk or the decode steps.
      kv_dtype: type that K/V are stored in; "" = the model's.

    Raises:
      ValueError: the budget does not hold one such request.
    """
    token = kv_bytes_by_owner(config, 1, kv_dtype or config.dtype)
    full = page_size * sum(b for i, b in token.items() if not config.layers[i].slides)
    sliding = page_size * sum(token.values()) - full
    whole = FullReservations(page_size).peak_pages(request_tok)
    span_tok = max(span_tok, limits.chunk_tok, *limits.decode_steps)
    pool = SlidingReservations(
        config.window, 0, page_tok=page_size, span_tok=span_tok, step_tok=limits.step_tok
    )
    window = pool.reserve(request_tok, request_tok, held=0, guaranteed=True)

    left = budget_bytes - full - sliding  # one page of each is the null page
    each = whole * full + window.reserved * sliding
    # A few requests cannot borrow as much at once as the common reserve holds.
    requests = max(
        (left - pool.common_reserve * sliding) // each, left // (each + window.borrowable * sliding)
    )
    if requests < 1:
        need = full + sliding + each + window.borrowable * sliding
        raise ValueError(
            f"a request of {request_tok} tokens needs {need} bytes of KV; the budget is {budget_bytes}"
        )
    num_pages = 1 + requests * whole
    window_pages = 1 + requests * window.reserved + min(pool.common_reserve, requests * window.borrowable)
    spare = budget_bytes - num_pages * full - window_pages * sliding
    num_pages += spare // full if full else 0
    window_pages += 0 if full else spare // sliding
    return Split(
        requests,
        num_pages if full else 0,
        window_pages if sliding else 0,
        num_pages * full + window_pages * sliding,
    )
