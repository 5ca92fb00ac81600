"""The model, engines and made-up states of this benchmark."""

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixattn.spec import ModelConfig
from serving.bench import network, prompt
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


def engine_of(
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


def one(rng: random.Random, ids: Sequence[int], new: int, vocab: int = WIDE.vocab_size) -> Request:
    sampling = Sampling(max_tokens=new, ignore_eos=True)
    return Request(client="a", prompt_ids=[*ids] or prompt(rng, 2048, vocab), sampling=sampling)
