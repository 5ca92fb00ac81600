"""What one KV budget holds: MA-Offset beside the standard pattern and the byte formula."""

import dataclasses
import math
import random
import time

from mixattn.spec import ModelConfig, kv_bytes
from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, Limits
from serving.request import Request, Sampling


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


# ---- what it is worth ----

# Outputs are half of it: with short ones a CPU is busy computing prompts, and memory is not what lacks.
CONTEXT, OUTPUT, PAGE, CHUNK = 1024, 512, 8, 16
SMALL = ModelConfig(
    n_layers=12, d_model=64, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128, vocab_size=512, window=64
)
BUDGET_REQUESTS = 6  # of the standard pattern


def pays(size: Size) -> list[Row]:
    """The same long prompts served in the same bytes of KV by either pattern, really run."""
    budget = BUDGET_REQUESTS * kv_bytes(
        dataclasses.replace(SMALL, kv_wiring="standard"), CONTEXT, dtype="float32"
    )
    rows: list[Row] = []
    for pattern in ("standard", "ma_offset"):
        config = dataclasses.replace(SMALL, kv_wiring=pattern)
        formula = budget / kv_bytes(config, CONTEXT, dtype="float32")
        most, seconds, held, stats = _within(config, budget)
        rate = stats.output_tok / seconds
        total = (stats.prompt_tok + stats.output_tok) / seconds
        detail = f"{stats.output_tok // OUTPUT} requests of {CONTEXT - OUTPUT} + {OUTPUT} tokens"
        rows += [
            row("pays", f"{pattern}: pools over the budget", held / budget, "", f"{budget} bytes"),
            row("pays", f"{pattern}: requests at once, at most", most, "", detail),
            row(
                "pays",
                f"{pattern}: over the byte formula",
                most / formula,
                "",
                "what lacks: whole pages, a chunk's",
            ),
            row("pays", f"{pattern}: output", rate, "tok/s"),
            row("pays", f"{pattern}: total", total, "tok/s"),
        ]
    value = {r["figure"]: r["value"] for r in rows}
    for what in ("requests at once, at most", "output"):
        gain = value[f"ma_offset: {what}"] / value[f"standard: {what}"]
        rows.append(row("pays", f"ma_offset over standard: {what}", gain, ""))
    return rows


def _within(config: ModelConfig, budget: int, requests: int = 104):
    """Most requests at once, seconds, bytes of the pools, and the engine's own account."""
    from serving.engine import Engine

    owners = [config.layers[o].window for o in config.owners]
    window_pages = -(-(SMALL.window + CHUNK - 2) // PAGE) + 1
    page_bytes = kv_bytes(dataclasses.replace(config, n_layers=1, kv_wiring="0"), PAGE, dtype="float32")
    whole = CONTEXT // PAGE
    each = page_bytes * sum(whole if w is None else window_pages for w in owners)
    count = budget // each  # the null page of each owner comes on top
    engine = Engine(
        network(config),
        EngineConfig(
            max_slots=count,
            page_size=PAGE,
            num_pages=count * whole + 1,
            window_pages=count * window_pages + 1,
            max_request_tok=CONTEXT,
            prefill_rows=(8,),
            reuse=False,
            limits=Limits(chunk_tok=CHUNK, step_tok=8 * CHUNK, decode_steps=(8, 1), mixed=True),
        ),
    )
    rng = random.Random(0)
    for _ in range(requests):
        ids = prompt(rng, CONTEXT - OUTPUT, config.vocab_size)
        engine.submit(
            Request(client="a", prompt_ids=ids, sampling=Sampling(max_tokens=OUTPUT, ignore_eos=True))
        )
    most, began = 0, time.perf_counter()
    while engine.live:
        engine.step()
        most = max(most, len(engine.scheduler.running))
    seconds = time.perf_counter() - began
    return most, seconds, sum(engine.state.cache.nbytes().values()), engine.stats()
