"""The engine from outside: policies, stops, cancels, deltas, refusals, nothing compiled after start-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from serving.config import Limits
from serving.engine.engine import Engine
from serving.request import Request, Sampling
from tests.serving.tiny import check_against_teacher, engine, model, teacher_forced, workload


@pytest.mark.parametrize(
    ("policy", "options"), [("fcfs", {}), ("vtc", {}), ("dlpm", {"quantum_tok": 64})], ids=lambda x: str(x)
)
def test_greedy_tokens_of_a_mixed_workload_are_those_of_the_uncached_model(policy, options):
    requests = workload()
    eng = engine(policy=policy, policy_options=options)
    check_against_teacher(requests, eng.run(requests))
    # A second wave finds the first one's prompts cached and must not notice.
    again = eng.run(requests)
    assert eng.stats().hit_tok > 0
    check_against_teacher(requests, again)
    eng.memory.check()


def test_a_prompt_array_that_its_caller_uses_again_does_not_change_what_is_cached():
    eng = engine(model("0_1s"))
    buffer = np.arange(20, dtype=np.int32)
    few = Sampling(max_tokens=4)
    eng.run([Request(client="a", prompt_ids=buffer, sampling=few)])
    buffer[8:] = 5
    [output] = eng.run([Request(client="a", prompt_ids=buffer, sampling=few)])
    assert output.hit_tok == 8
    assert output.output_ids == teacher_forced(buffer.tolist(), 4, model("0_1s"))


def test_running_out_of_pages_preempts_and_resumes_without_changing_tokens():
    requests = [
        Request(client="a", prompt_ids=[i + 1] * 10, sampling=Sampling(max_tokens=30)) for i in range(4)
    ]
    limits = Limits(chunk_tok=16, step_tok=32, admission="optimistic")
    eng = engine(model("0_1_2"), num_pages=20, limits=limits)
    outputs = eng.run(requests)
    assert eng.stats().preemptions > 0
    check_against_teacher(requests, outputs, model("0_1_2"))
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
