"""Eviction beside the full cache: decode, prefill, settling, hits, memory, and requests at once.

8 layers of width 256 with 8 / 4 heads of 32 and a vocabulary of 32k, 32 rows, slabs of 20 % of the context.
Decode steps run on states that are made up: random keys, every row at the same length. The floor of a step
is one with a context of a page, which is attention for nothing.
"""

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from mixattn.spec import ModelConfig, kv_bytes
from pallas_kernels import measure
from serving.bench import Row, Size, network, prompt, row
from serving.config import EngineConfig, KeepSettings, Limits
from serving.request import Request, Sampling

if TYPE_CHECKING:
    from serving.engine.engine import Engine

WIDE = ModelConfig(
    n_layers=8,
    d_model=256,
    n_heads=8,
    n_kv_heads=4,
    head_dim=32,
    d_ff=1024,
    vocab_size=32_768,
    max_positions=16_384,
)
ROWS, SHARE, PAGE, NEW = 32, 5, 16, 256  # a fifth of the context is kept
STEPS = 4  # decode steps of a timed call
GOALS = {2048: ">= 1.8", 4096: ">= 2.3"}
HIT = 1024


def keep(size: Size) -> Iterable[Row]:
    """All figures, each as soon as it is known."""
    for context, goal in GOALS.items():
        yield from _decode(context, goal, 3 * size.repeats)
    yield from _short(size.repeats * 4)
    yield from _prefill(size.repeats)
    yield from _hit(2 * size.repeats)
    yield from _peak()
    yield from _at_once()


def _engine(
    context: int, *, rows: int = ROWS, slab: int = 0, model: ModelConfig = WIDE, **more: Any
) -> "Engine":
    from serving.engine.engine import Engine

    limits = more.pop("limits", Limits(chunk_tok=256, step_tok=256, decode_steps=(STEPS, 1)))
    config = EngineConfig(
        max_slots=rows,
        page_size=PAGE,
        max_request_tok=context + NEW,
        num_pages=more.pop("num_pages", 0),
        prefill_rows=(1,),
        chunk_sizes=(16,),
        limits=limits,
        layers_per_program=0,
        keep=KeepSettings(slab_tok=slab, full_decode=False) if slab else KeepSettings(),
        **more,
    )
    return Engine(network(model), config)


def slab_of(context: int) -> int:
    """A fifth of prompt and output."""
    return (context + NEW) // SHARE


def _decode(context: int, goal: str, rounds: int) -> list[Row]:
    """A step of 32 rows whose context is `context`, over full pages, slabs, and a page each."""
    slab = slab_of(context)
    # One prompt is in prefill at a time: the pool of an engine that evicts holds little more.
    full = _engine(context)
    kept = _engine(context, slab=slab, num_pages=2 + (context + NEW) // PAGE)
    none = _engine(PAGE - NEW)
    sides = {
        "full": decode_call(full, context),
        "slabs": decode_call(kept, context),
        "no attention": decode_call(none, PAGE // 2),
    }
    taken = measure.interleave(sides, rounds)
    ms = {name: 1e3 * median(s) / STEPS for name, s in taken.items()}
    least = {name: 1e3 * min(s) / STEPS for name, s in taken.items()}
    what = f"{ROWS} rows, context {context}"
    rows = [row("keep", f"{what}, {n}: decode step", ms[n], "ms", f"minimum {least[n]:.2f}") for n in ms]
    gain, ceiling = ms["full"] / ms["slabs"], ms["full"] / ms["no attention"]
    rows += [
        row("keep", f"{what}: full over slabs of {slab}", gain, "", goal=goal),
        row("keep", f"{what}: minima", least["full"] / least["slabs"], ""),
        row("keep", f"{what}: ceiling, attention for nothing", ceiling, "", "full over a context of a page"),
        row("keep", f"{what}: share of the ceiling", gain / ceiling, ""),
    ]
    rows += _scores(kept, context, rounds)
    return rows + _settle(kept, context, ms["slabs"], rounds)


def decode_call(engine: "Engine", context: int, rows: int = ROWS) -> Callable[[], float]:
    """A call of `STEPS` steps of every row on a made-up state, as seconds."""
    import jax
    import numpy as np

    from mixattn.cache import FULL
    from serving.engine.device_state import PLAIN
    from serving.engine.slab_programs import SlabPrograms

    programs, slots = engine.programs, engine.config.max_slots
    engine.state = made_up(engine.state, context, engine.config.keep.slab_tok)
    left = np.zeros(rows, np.int32)
    left[:] = STEPS
    place = np.arange(rows, dtype=np.int32)
    if isinstance(programs, SlabPrograms):
        run, batch = programs.decode_slabs, programs.blank_slab_decode(rows)
    else:
        run, batch = programs.decode, programs.blank_decode(rows)
        table = batch.tables[FULL.name]
        pages = -(-(context + STEPS) // PAGE)
        table[:, :pages] = 1 + np.arange(rows * pages).reshape(rows, pages)
    batch = batch._replace(slot_R=place, left_R=left)
    before = jax.tree.map(lambda x: x.copy(), engine.state.rows)
    slabs = (
        None if engine.state.kept is None else jax.tree.map(lambda x: x.copy(), _beside(engine.state.kept))
    )

    def seconds() -> float:
        state = dataclasses.replace(engine.state, rows=jax.tree.map(lambda x: x.copy(), before))
        if slabs is not None and state.kept is not None:
            state = dataclasses.replace(state, kept=_with_beside(state.kept, slabs))
        jax.block_until_ready(state)
        start = time.perf_counter()
        engine.state, drawn = run(state, batch, STEPS, PLAIN)
        np.asarray(drawn.token)
        return time.perf_counter() - start

    assert slots >= rows
    return seconds


def _beside(kept: Any) -> dict[int, Any]:
    """Scores and positions, which decoding changes; keys may be any."""
    return {owner: (slab.score_ZKR, slab.position_ZKR) for owner, slab in kept.slabs.items()}


def _with_beside(kept: Any, beside: dict[int, Any]) -> Any:
    slabs = {
        owner: dataclasses.replace(
            slab, score_ZKR=beside[owner][0].copy(), position_ZKR=beside[owner][1].copy()
        )
        for owner, slab in kept.slabs.items()
    }
    return dataclasses.replace(kept, slabs=slabs)


def made_up(state: Any, context: int, slab_tok: int) -> Any:
    """The state with random keys and values, and rows and slabs that hold `context` tokens."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def noise(x: Any) -> Any:
        block = rng.standard_normal((1, *x.shape[1:]), np.float32)
        return jnp.broadcast_to(jnp.asarray(block, x.dtype), x.shape).copy()

    pools = {owner: jax.tree.map(noise, pool) for owner, pool in state.cache.pools.items()}
    rows = dataclasses.replace(state.rows, position_B=jnp.full_like(state.rows.position_B, context))
    state = dataclasses.replace(state, cache=dataclasses.replace(state.cache, pools=pools), rows=rows)
    if state.kept is None:
        return state
    slabs = {}
    for owner, slab in state.kept.slabs.items():
        Z, K, R = slab.score_ZKR.shape
        held = min(slab_tok, context)
        position = np.full((Z, K, R), -1, np.int32)
        recent = held // 2
        for z in range(Z):
            for k in range(K):
                old = np.sort(rng.choice(context - recent, held - recent, replace=False))
                position[z, k, :held] = np.concatenate([old, np.arange(context - recent, context)])
        limits = np.tile(np.array([slab_tok - recent, recent, 0], np.int32), (Z, 1))
        slabs[owner] = dataclasses.replace(
            slab,
            pool=jax.tree.map(noise, slab.pool),
            score_ZKR=jnp.asarray(rng.random((Z, K, R), np.float32)),
            position_ZKR=jnp.asarray(position),
            limits_Z3=jnp.asarray(limits),
        )
    return dataclasses.replace(state, kept=dataclasses.replace(state.kept, slabs=slabs))


def _scores(engine: "Engine", context: int, rounds: int) -> list[Row]:
    """Scores and eviction of one layer beside write and attention over the same slabs."""
    import jax
    import jax.numpy as jnp

    from mixattn.cache.kept_pages import ScoredRows
    from pallas_kernels import paged

    assert engine.state.kept is not None
    owner, slab = next(iter(engine.state.kept.slabs.items()))
    slab = jax.tree.map(lambda x: x.copy(), slab)
    B, K, H, N = ROWS, WIDE.n_kv_heads, WIDE.head_dim, WIDE.n_heads
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (B, n, H)) for key, n in zip(keys, (N, K, K)))
    assert engine.slabs is not None
    slot, live, rules = jnp.arange(B), jnp.ones(B, bool), engine.slabs.rules
    at, one = jnp.full(B, context, jnp.int32), jnp.ones(B, jnp.int32)

    def attended(slab: Any, i: Any, weights: bool) -> Any:
        slab = slab.write(slot, at + i, live, k, v)
        held = jnp.maximum(slab.held() - 1, 0)
        got = paged.attend(q[:, None], slab.pool, slab.table(slot), held, one, return_weights=weights)
        return slab, got

    def plain(slab: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            slab, out = carry
            slab, got = attended(slab, i, False)
            # The token goes again: the slab stays as large as it is with eviction.
            gone = slab.position_ZKR == (at + i)[:, None, None]
            position = jnp.where(gone, -1, slab.position_ZKR)
            return dataclasses.replace(slab, position_ZKR=position), out + got

        return jax.lax.fori_loop(0, 8, body, (slab, jnp.zeros((B, 1, N, H))))

    def scored(slab: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            slab, out = carry
            slab, (got, weights) = attended(slab, i, True)
            weights_BKR = jnp.sum(weights.reshape(B, K, N // K, -1), axis=2)
            rows = ScoredRows(slot, jnp.zeros(B, jnp.int32), live)
            return slab.evicted(owner, rules, rows, weights_BKR), out + got

        return jax.lax.fori_loop(0, 8, body, (slab, jnp.zeros((B, 1, N, H))))

    runs = {"write + attend": jax.jit(plain), "scores + eviction": jax.jit(scored)}
    sides = {name: measure.timed(functools.partial(run, slab)) for name, run in runs.items()}
    taken = measure.interleave(sides, 2 * rounds)
    ms = {name: 1e3 * median(s) / 8 for name, s in taken.items()}
    ratio = median(taken["scores + eviction"]) / median(taken["write + attend"])
    least = min(taken["scores + eviction"]) / min(taken["write + attend"])
    detail = ", ".join(f"{name} {value:.2f} ms" for name, value in ms.items())
    return [
        row(
            "keep",
            f"a layer at {context}: scores + eviction over write + attend",
            ratio,
            "",
            detail,
            "<= 1.4",
        ),
        row("keep", f"a layer at {context}: the same, minima", least, ""),
    ]


def _settle(engine: "Engine", context: int, step_ms: float, rounds: int) -> list[Row]:
    """One prompt's move to its slab beside a decode step of the batch."""
    import jax
    import numpy as np

    from serving.engine.slab_programs import SlabPrograms

    programs = engine.programs
    assert isinstance(programs, SlabPrograms)
    blank = programs.blank_settle()
    table = np.arange(1, len(blank.table_P) + 1, dtype=np.int32)
    heavy = engine.config.keep.slab_tok // 2
    cut = np.tile(np.array([engine.config.keep.slab_tok - heavy, heavy, 0], np.int32), (len(blank.cut_O3), 1))
    batch = blank._replace(table_P=table, tokens=np.int32(context), votes_row=np.int32(1), cut_O3=cut)

    def seconds() -> float:
        start = time.perf_counter()
        engine.state = programs.settle(engine.state, batch)
        jax.block_until_ready(engine.state)
        return time.perf_counter() - start

    taken = [seconds() for _ in range(2 + 2 * rounds)][2:]
    ms = 1e3 * median(taken)
    share = ms / step_ms
    return [
        row("keep", f"settle of {context} tokens over a decode step", share, "", f"{ms:.2f} ms", "<= 0.05")
    ]


def _short(rounds: int) -> list[Row]:
    """One row, and 32 rows, below the budget: what an engine that evicts costs where nothing is evicted."""
    rows: list[Row] = []
    for count in (1, ROWS):
        context = 256
        engines = [_engine(512, rows=count), _engine(512, rows=count, slab=512 + NEW)]
        sides = {n: decode_call(e, context, count) for n, e in zip(("full", "slabs"), engines)}
        taken = measure.interleave(sides, 3 * rounds)
        ratio = median(taken["slabs"]) / median(taken["full"])
        detail = f"minima {min(taken['slabs']) / min(taken['full']):.3f}"
        what = f"batch {count}, context {context} below the budget: slabs over full"
        rows.append(row("keep", what, ratio, "", detail, "<= 1.03"))
    return rows


def _one(rng: random.Random, ids: Sequence[int], new: int, vocab: int = WIDE.vocab_size) -> Request:
    sampling = Sampling(max_tokens=new, ignore_eos=True)
    return Request(client="a", prompt_ids=[*ids] or prompt(rng, 2048, vocab), sampling=sampling)


def _prefill(rounds: int) -> list[Row]:
    """A prompt of 2,048 tokens with and without scores."""
    engines = {
        "full": _engine(2048, rows=1, reuse=False),
        "slabs": _engine(2048, rows=1, slab=slab_of(2048), reuse=False),
    }
    rng = random.Random(0)
    first: dict[str, list[int]] = {name: [] for name in engines}
    prompts = [prompt(rng, 2048, WIDE.vocab_size) for _ in range(rounds + 1)]

    def ttft_s(name: str) -> float:
        ids = prompts[len(first[name]) % len(prompts)]
        [output] = engines[name].run([_one(rng, ids, 2)])
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


def _hit(rounds: int) -> list[Row]:
    """Prompts of 1,024 cached tokens and 16 of their own, beside cold ones; and the keys that they keep."""
    engines = [_engine(HIT + 64, rows=1, slab=256) for _ in range(2)]
    rng = random.Random(0)
    shared: list[int] = []
    kept: list[tuple[list[int], Any]] = []

    def ttft_s(new: bool) -> float:
        if new:
            shared[:] = prompt(rng, HIT, WIDE.vocab_size)
        ids = shared + prompt(rng, PAGE, WIDE.vocab_size)
        [output] = engines[0].run([_one(rng, ids, 2)])
        if not new:
            assert output.hit_tok == HIT
            kept.append((ids, _positions(engines[0])))
        return output.first_token_s - output.arrival_s

    taken = measure.interleave({"cold": lambda: ttft_s(True), "hit": lambda: ttft_s(False)}, rounds, warmup=0)
    differ = 0
    for ids, positions in kept:
        engines[1].memory.clear_cache()
        engines[1].run([_one(rng, ids, 2)])
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


def _peak() -> list[Row]:
    """Bytes that the prefill programs of an engine for 8k tokens take, as the compiler counts them."""
    engine = _engine(8192, rows=1, slab=slab_of(8192))
    sizes = {}
    for name in ("prefill", "prefill votes"):
        programs = [run for key, run in engine.programs.compiled.items() if key[0] == name and key[2] == 256]
        memory = programs[0].memory_analysis()  # type: ignore[attr-defined]
        sizes[name] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    detail = f"{sizes['prefill'] / 1e6:.1f} MB without, arguments and temporaries"
    ratio = sizes["prefill votes"] / sizes["prefill"]
    return [row("keep", "peak bytes of an 8k prefill with scores over without", ratio, "", detail, "<= 1.05")]


SMALL = ModelConfig(
    n_layers=4, d_model=64, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=128, vocab_size=512, max_positions=4096
)
HOLDS = 24  # requests that the budget holds in full
LONG = 2048


def _at_once() -> list[Row]:
    """Requests of 2,048 + 256 tokens in one budget, served to the end: full cache and slabs of a fifth."""
    tokens = LONG + NEW
    budget = HOLDS * kv_bytes(SMALL, tokens, SMALL.dtype)
    slab = slab_of(LONG)
    key_bytes = SMALL.n_layers * SMALL.n_kv_heads * (2 * SMALL.head_dim * 4 + 8)
    page_bytes = PAGE * kv_bytes(SMALL, 1, SMALL.dtype)
    places = -(-(slab + 1) // PAGE) * PAGE
    prompt_pages = 2 + LONG // PAGE
    votes = 2 * 4 * SMALL.n_layers * (tokens + PAGE)
    left = budget - prompt_pages * page_bytes - votes
    slots = left // (places * key_bytes + 12)
    formula = (budget - kv_bytes(SMALL, LONG, SMALL.dtype)) / (slab * key_bytes)
    limits = Limits(chunk_tok=256, step_tok=256, decode_steps=(STEPS, 1), mixed=False)
    pools = HOLDS * (tokens // PAGE) + 1
    full = _engine(LONG, rows=HOLDS + 4, model=SMALL, num_pages=pools, reuse=False, limits=limits)
    from serving.engine.engine import Engine

    config = dataclasses.replace(
        full.config,
        max_slots=slots,
        num_pages=prompt_pages,
        keep=KeepSettings(slab_tok=slab, snapshots=0, prefilling=1, full_decode=False),
    )
    kept = Engine(network(SMALL), config)
    found = {name: _served(engine, slots) for name, engine in (("full", full), ("slabs", kept))}
    used = kept.stats().slab_bytes + kept.stats().votes_bytes + prompt_pages * page_bytes
    (full_at_once, full_rate), (at_once, rate) = found["full"], found["slabs"]
    return [
        row(
            "keep", "requests at once, full cache", full_at_once, "", f"{LONG} + {NEW} tokens, {budget} bytes"
        ),
        row("keep", f"requests at once, slabs of {slab}", at_once, "", f"{used / budget:.3f} of the budget"),
        row("keep", "requests at once, slabs over full", at_once / full_at_once, "", goal=">= 4.5"),
        row("keep", "requests at once over the formula", at_once / formula, "", f"{formula:.1f}", ">= 0.98"),
        row("keep", "bytes over the budget", used / budget, "", goal="<= 1"),
        row("keep", "output, full cache", full_rate, "tok/s"),
        row("keep", "output, slabs", rate, "tok/s"),
        row("keep", "output, slabs over full", rate / full_rate, ""),
    ]


def _served(engine: "Engine", requests: int) -> tuple[int, float]:
    """The most requests that ran at once, and output tokens/s."""
    rng = random.Random(0)
    for _ in range(requests):
        engine.submit(_one(rng, prompt(rng, LONG, SMALL.vocab_size), NEW))
    most, start = 0, time.perf_counter()
    while engine.live:
        engine.step()
        most = max(most, len(engine.scheduler.running))
    return most, engine.stats().output_tok / (time.perf_counter() - start)
