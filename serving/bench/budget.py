"""What one KV budget holds: MA-Offset beside the standard pattern and the byte formula."""

import dataclasses
import math

from mixattn.spec import ModelConfig, kv_bytes
from serving.bench import Row, Size, row


def memory(size: Size, context: int = 8192, page: int = 16, budget_requests: int = 64) -> list[Row]:
    """Requests of `context` tokens that one budget holds at once, counted by the engine's own page books."""
    wide = ModelConfig(n_layers=24, kv_wiring="standard", window=1024)
    budget = budget_requests * kv_bytes(wide, context, dtype=wide.dtype)
    held = {}
    rows = []
    for pattern in ("standard", "ma_offset"):
        config = dataclasses.replace(wide, kv_wiring=pattern)
        formula = budget / kv_bytes(config, context, dtype=config.dtype)
        held[pattern] = admitted(config, budget, context, page)
        rows.append(
            row("memory", f"{pattern}: requests at once", held[pattern], "", f"{context} tokens each")
        )
        rows.append(row("memory", f"{pattern}: by the byte formula", formula, ""))
        rows.append(
            row("memory", f"{pattern}: over the formula", held[pattern] / formula, "", "goal >= 0.98")
        )
    gain = held["ma_offset"] / held["standard"]
    return [*rows, row("memory", "ma_offset over standard", gain, "")]


def admitted(config: ModelConfig, budget: int, context: int, page: int) -> int:
    """How many decoding requests of `context` tokens the page books take, pools split for that length."""
    from serving.memory import PagedMemory
    from serving.pages import Group
    from serving.tokens import Ids

    token_bytes = kv_bytes(dataclasses.replace(config, n_layers=1, kv_wiring="0"), 1, dtype=config.dtype)
    owners = [config.layers[o].window for o in config.owners]
    windows = sorted(set(owners), key=lambda w: -1 if w is None else w)
    most = {w: math.ceil(context / page) for w in windows}
    for w in windows:
        if w is not None:
            most[w] = min(most[w], math.ceil((w - 1) / page) + 1)
    each = sum(most[w] * page * token_bytes * owners.count(w) for w in windows)
    count = budget // each
    groups = [Group(w, count * most[w] + 1) for w in windows]
    books = PagedMemory(groups, page_tok=page, max_slots=2 * count, max_tok=context, span_tok=1, reuse=False)
    while (got := books.admit(Ids([0] * (context - 1)), None, context, reserve=True)) is not None:
        # Decoding at its full length: what its window has left behind is free again.
        holding, at = got
        while at < context - 1:
            assert books.grow(holding, at, at + 1)
            at += 1
            books.computed(holding, Ids([]), at, share=False)
    return 2 * count - books.slots_free
