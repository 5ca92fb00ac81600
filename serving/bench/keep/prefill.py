"""Prompts with and without scores: time, memory, and hits at snapshots."""

import functools
import random
from statistics import median
from typing import TYPE_CHECKING, Any

from pallas_kernels import measure
from serving.bench import Row, prompt, row
from serving.bench.keep.engines import PAGE, WIDE, engine_of, one, slab_of

if TYPE_CHECKING:
    from serving.engine.engine import Engine

HIT = 1024


def prefilling(rounds: int) -> list[Row]:
    """A prompt of 2,048 tokens with and without scores."""
    engines = {
        "full": engine_of(2048, rows=1, reuse=False),
        "slabs": engine_of(2048, rows=1, slab=slab_of(2048), reuse=False),
    }
    rng = random.Random(0)
    first: dict[str, list[int]] = {name: [] for name in engines}
    prompts = [prompt(rng, 2048, WIDE.vocab_size) for _ in range(rounds + 1)]

    def ttft_s(name: str) -> float:
        ids = prompts[len(first[name]) % len(prompts)]
        [output] = engines[name].run([one(rng, ids, 2)])
        first[name].append(output.output_ids[0])
        return output.first_token_s - output.arrival_s

    sides = {name: functools.partial(ttft_s, name) for name in engines}
    full, slabs = measure.interleave(sides, rounds).values()
    same = sum(a == b for a, b in zip(first["full"], first["slabs"]))
    detail = f"{1e3 * median(full):.0f} and {1e3 * median(slabs):.0f} ms"
    return [
        row(
            "keep",
            "prefill of 2048 with scores over without",
            median(slabs) / median(full),
            "",
            detail,
            "<= 1.15",
        ),
        row("keep", "the same, minima", min(slabs) / min(full), ""),
        row("keep", "first tokens that differ", len(first["full"]) - same, "", goal="= 0"),
    ]


def hits(rounds: int) -> list[Row]:
    """Prompts of 1,024 cached tokens and 16 of their own, beside cold ones; and the keys that they keep."""
    engines = [engine_of(HIT + 64, rows=1, slab=256) for _ in range(2)]
    rng = random.Random(0)
    shared: list[int] = []
    kept: list[tuple[list[int], Any]] = []

    def ttft_s(new: bool) -> float:
        if new:
            shared[:] = prompt(rng, HIT, WIDE.vocab_size)
        ids = shared + prompt(rng, PAGE, WIDE.vocab_size)
        [output] = engines[0].run([one(rng, ids, 2)])
        if not new:
            assert output.hit_tok == HIT
            kept.append((ids, _positions(engines[0])))
        return output.first_token_s - output.arrival_s

    taken = measure.interleave({"cold": lambda: ttft_s(True), "hit": lambda: ttft_s(False)}, rounds, warmup=0)
    differ = 0
    for ids, positions in kept:
        engines[1].memory.clear_cache()
        engines[1].run([one(rng, ids, 2)])
        differ += any(not (a == b).all() for a, b in zip(positions, _positions(engines[1])))
    cold, hit = (median(s) for s in taken.values())
    what = f"time to first token, hit of {HIT} tokens with a snapshot over cold"
    return [
        row("keep", what, hit / cold, "", f"{1e3 * cold:.0f} and {1e3 * hit:.0f} ms", "<= 0.3"),
        row("keep", "hits whose keep-sets differ from a cold run's", differ, "", f"of {len(kept)}", "= 0"),
    ]


def _positions(engine: "Engine") -> list[Any]:
    import numpy as np

    assert engine.state.kept is not None
    return [np.sort(np.asarray(slab.position_ZKR), axis=-1) for slab in engine.state.kept.slabs.values()]


def peak() -> list[Row]:
    """Bytes that the prefill programs of an engine for 8k tokens take, as the compiler counts them.

    Both programs carry the same pools, slabs and rows of scores, so that the ratio shows what is made on the
    way; beside it the bytes of the rows themselves, which an engine that does not evict has not.
    """
    engine = engine_of(8192, rows=1, slab=slab_of(8192))
    sizes, temporary = {}, {}
    for name in ("prefill", "prefill votes"):
        programs = [run for key, run in engine.programs.compiled.items() if key[0] == name and key[2] == 256]
        memory = programs[0].memory_analysis()  # type: ignore[attr-defined]
        sizes[name] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        temporary[name] = memory.temp_size_in_bytes / 1e6
    detail = f"{sizes['prefill'] / 1e6:.1f} MB without, arguments and temporaries"
    ratio = sizes["prefill votes"] / sizes["prefill"]
    detail += ", of these temporary {prefill:.1f} and {prefill votes:.1f} MB".format(**temporary)
    votes = engine.stats().votes_bytes
    per_row = (
        f"{engine.config.keep.snapshots} snapshots and a prompt's; a row is {votes / _vote_rows(engine):,.0f}"
    )
    return [
        row("keep", "peak bytes of an 8k prefill with scores over without", ratio, "", detail, "<= 1.05"),
        row("keep", "bytes of all rows of scores", votes, "bytes", per_row),
    ]


def _vote_rows(engine: "Engine") -> int:
    from serving.engine.slab_programs import SlabPrograms

    assert isinstance(engine.programs, SlabPrograms)
    return engine.programs.vote_rows
