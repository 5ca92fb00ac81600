"""The engine against teacher-forced decoding: same tokens whatever the batch, the cache or the chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixattn import ModelConfig, Transformer
from serving.config import EngineConfig, Limits
from serving.engine import Engine
from serving.request import Request, Sampling

WIRING = "0s_0s_2_3s_3s_2"
VOCAB = 64


@functools.cache
def model(wiring: str = WIRING, window: int = 12) -> Transformer:
    config = ModelConfig(
        n_layers=len(wiring.split("_")),
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        d_ff=64,
        vocab_size=VOCAB,
        kv_wiring=wiring,
        window=window,
    )
    return Transformer(config, rngs=nnx.Rngs(3))


@functools.cache
def _forward(wiring: str):
    graphdef, params = nnx.split(model(wiring))
    run = jax.jit(lambda params, tokens_BT: nnx.merge(graphdef, params)(tokens_BT))
    return functools.partial(run, params)


def teacher_forced(prompt, n, wiring: str = WIRING) -> list[int]:
    """Greedy decoding without any cache: the whole sequence anew for each token."""
    tokens = list(prompt)
    for _ in range(n):
        padded = np.zeros((1, 96), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(jnp.argmax(_forward(wiring)(padded)[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


def engine(wiring: str = WIRING, *, policy="fcfs", options=None, log=None, **more) -> Engine:
    limits = more.pop("limits", Limits(chunk_tok=16, step_tok=32))
    config = EngineConfig(
        max_slots=4,
        page_size=4,
        max_request_tok=64,
        prefill_rows=(4,),
        policy=policy,
        policy_options=options or {},
        limits=limits,
        **more,
    )
    return Engine(model(wiring), config, log=log or (lambda event: None))


def workload(seed=0, n=10) -> list[Request]:
    rng = np.random.default_rng(seed)
    stem = rng.integers(0, VOCAB, 20).tolist()
    requests = []
    for i in range(n):
        own = rng.integers(0, VOCAB, rng.integers(1, 25)).tolist()
        prompt = stem + own if i % 3 == 0 else own
        sampling = Sampling(max_tokens=int(rng.integers(1, 18)))
        requests.append(Request(client="abc"[i % 3], prompt_ids=prompt, sampling=sampling))
    return requests


def check_against_teacher(requests, outputs, wiring=WIRING):
    for request, output in zip(requests, outputs):
        want = teacher_forced(request.prompt_ids, request.sampling.max_tokens, wiring)
        assert output.output_ids == want, f"{output.id}: prompt of {len(request.prompt_ids)}"
        assert output.finish_reason == "length"


@pytest.mark.parametrize(
    ("policy", "options"), [("fcfs", {}), ("vtc", {}), ("dlpm", {"quantum_tok": 64})], ids=lambda x: str(x)
)
def test_greedy_tokens_of_a_mixed_workload_are_those_of_the_uncached_model(policy, options):
    requests = workload()
    eng = engine(policy=policy, options=options)
    check_against_teacher(requests, eng.run(requests))
    # A second wave finds the first one's prompts cached and must not notice.
    again = eng.run(requests)
    assert eng.stats().hit_tok > 0
    check_against_teacher(requests, again)
    eng.memory.check()


@pytest.mark.parametrize("wiring", ["0_1_2", "0s_1s", "0s_0s_2_2"])
def test_every_kind_of_wiring_is_served(wiring):
    requests = workload(seed=1, n=6)
    check_against_teacher(requests, engine(wiring).run(requests), wiring)


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_chunk_size_does_not_change_tokens(chunk):
    requests = workload(seed=2, n=6)
    eng = engine(limits=Limits(chunk_tok=chunk, step_tok=max(chunk, 8), decode_steps=(1,)))
    check_against_teacher(requests, eng.run(requests))


def test_running_out_of_pages_preempts_and_resumes_without_changing_tokens():
    requests = [
        Request(client="a", prompt_ids=[i + 1] * 10, sampling=Sampling(max_tokens=30)) for i in range(4)
    ]
    limits = Limits(chunk_tok=16, step_tok=32, admission="optimistic")
    eng = engine("0_1_2", num_pages=20, limits=limits)
    outputs = eng.run(requests)
    assert eng.stats().preemptions > 0
    check_against_teacher(requests, outputs, "0_1_2")
    eng.memory.check()


def test_nothing_is_compiled_after_warm_up():
    eng = engine()
    eng.run(workload(n=3))
    with jax.log_compiles(False), _count_compiles() as compiled:
        eng.run(workload(seed=5, n=12))
    assert compiled == []
    assert eng.stats().programs == len(eng.stats().compile_s)


class _count_compiles:
    """Records the names of what XLA compiles inside the block."""

    def __enter__(self):
        self.seen: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self.seen

    def _hear(self, event, duration, **kwargs):
        if "backend_compile" in event:
            self.seen.append(event)

    def __exit__(self, *exc):
        jax.monitoring.unregister_event_duration_listener(self._hear)


def test_pools_are_updated_in_place():
    eng = engine()
    before = [pool.keys.unsafe_buffer_pointer() for pool in eng.state.cache.pools.values()]
    old = eng.state
    eng.run(workload(n=3))
    assert all(x.is_deleted() for x in jax.tree.leaves(old)), "donation took"
    after = [pool.keys.unsafe_buffer_pointer() for pool in eng.state.cache.pools.values()]
    assert before == after


def test_sampled_tokens_do_not_depend_on_batch_mates():
    hot = Sampling(max_tokens=12, temperature=0.9, top_p=0.8, seed=7)
    one = Request(client="a", prompt_ids=[1, 2, 3], sampling=hot)
    alone = engine().run([one])[0].output_ids
    crowd = engine().run([*workload(n=5), one])[-1].output_ids
    assert crowd == alone
    assert alone != teacher_forced([1, 2, 3], 12), "it did sample"


def test_a_stop_id_ends_a_request_and_is_its_last_token():
    prompt = [1, 2, 3]
    free = teacher_forced(prompt, 12)
    stop = free[4]
    request = Request(client="a", prompt_ids=prompt, sampling=Sampling(max_tokens=12, stop_ids=(stop,)))
    output = engine().run([request])[0]
    assert output.finish_reason == "stop"
    assert output.output_ids == free[: free.index(stop) + 1]


def test_cancelling_at_any_time_leaves_nothing_behind():
    eng = engine()
    ids = [eng.submit(r) for r in workload(n=8)]
    ended = []
    for i in range(200):
        ended += [d.id for d in eng.step() if d.output is not None]
        if i < 4:
            eng.cancel(ids[2 * i])
        eng.memory.check()
        if not eng.live:
            break
    assert sorted(ended) == sorted(ids)
    assert eng.memory.slots_free == 4
    assert eng.cancel(ids[0]) is False, "it ended long ago"


def test_deltas_add_up_to_the_output():
    eng = engine()
    for request in workload(n=6):
        eng.submit(request)
    got: dict[str, list[int]] = {}
    while eng.live:
        for delta in eng.step():
            got.setdefault(delta.id, []).extend(delta.ids)
            if delta.output is not None:
                assert got[delta.id] == delta.output.output_ids


def test_a_request_too_long_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="needs 70 tokens, the engine serves at most 64"):
        engine().submit(Request(client="a", prompt_ids=[1] * 60, sampling=Sampling(max_tokens=10)))


def test_broken_logits_end_that_request_only():
    graphdef, params = nnx.split(model())
    params = jax.tree.map(lambda x: x, params)
    table = params["embed"]["table"][...]
    params["embed"]["table"][...] = table.at[63].set(jnp.nan)
    broken = nnx.merge(graphdef, params)
    good, bad = [1, 2, 3], [4, 63, 5]
    outputs = Engine(broken, engine().config).run(
        [Request(client="a", prompt_ids=p, sampling=Sampling(max_tokens=5)) for p in (bad, good)]
    )
    assert outputs[0].finish_reason == "error"
    assert outputs[1].finish_reason == "length"
    assert outputs[1].output_ids == teacher_forced(good, 5)
