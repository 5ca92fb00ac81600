"""The compiled step: its gradient is exact however it is computed; it updates only trainable parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixattn import ModelConfig
from train import mesh, objective
from train.optimizer import OptimizerConfig
from train.step import CompiledStage, ComputeConfig

CONFIG = ModelConfig(
    n_layers=2,
    d_model=16,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    d_ff=32,
    vocab_size=24,
    kv_wiring="0s_1",
    window=4,
    tied=True,
)
# A constant learning rate without warm-up, so that the first step already moves the parameters.
OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=0.01, warmup=0, schedule="constant")


def batch(rows=4, T=12, seed=0):
    rng = np.random.default_rng(seed)
    token = rng.integers(0, 24, (rows, T + 1)).astype(np.int32)
    return {
        "tokens_BT": token[:, :-1],
        "target_BT": token[:, 1:],
        "loss_mask_BT": (rng.random((rows, T)) < 0.6).astype(np.float32),
        "segment_BT": np.sort(rng.integers(0, 3, (rows, T))).astype(np.int32),
    }


@pytest.fixture(scope="module")
def params():
    return objective.init_params(CONFIG, 0)


@functools.cache
def make(trainable="all", document_mask=False, **compute):
    devices = mesh.make(mesh.MeshShape())
    return CompiledStage(
        CONFIG, OPTIMIZER, ComputeConfig(**compute), devices, trainable=trainable, document_mask=document_mask
    )


def step(compiled, params, n=1, data=None):
    state = compiled.init_state(params)
    for _ in range(n):
        state, metrics = compiled.train(state, jax.device_put(data or batch(), compiled.rows), jnp.int32(10))
    return state, metrics


@pytest.fixture(scope="module")
def plain(params):
    return step(make(), params, n=3)


@pytest.mark.parametrize(
    ("compute", "atol"),
    [
        ({"accumulate": 2}, 2e-5),
        ({"remat": "weights"}, 2e-5),
        ({"remat": "everything"}, 2e-5),
        ({"remat": "block"}, 2e-5),
        ({"dtype": "bfloat16"}, 0.03),
    ],
    ids=str,
)
def test_three_steps_give_the_same_result_however_they_are_computed(params, plain, compute, atol):
    state, metrics = step(make(**compute), params, n=3)
    want, want_metrics = plain
    assert float(metrics.loss) == pytest.approx(float(want_metrics.loss), abs=atol)
    for path in params:
        assert state.params[path].dtype == jnp.float32
        np.testing.assert_allclose(state.params[path], want.params[path], atol=atol, err_msg=path)


def test_micro_batches_of_unequal_weight_give_the_mean_over_loss_tokens(params):
    lopsided = batch()
    lopsided["loss_mask_BT"][::2] = 0
    lopsided["loss_mask_BT"][0, 0] = 1
    one = step(make(), params, data=lopsided)[1]
    two = step(make(accumulate=2), params, data=lopsided)[1]
    assert float(two.loss) == pytest.approx(float(one.loss), rel=1e-5)
    assert float(two.grad_norm) == pytest.approx(float(one.grad_norm), rel=1e-4)


def test_the_loss_is_the_mean_nats_of_the_loss_tokens(params):
    data = batch()
    logits_BTV = np.asarray(objective.model_of(CONFIG, params)(data["tokens_BT"]), np.float64)
    log_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    nats_BT = -np.take_along_axis(log_BTV, data["target_BT"][..., None], -1)[..., 0]
    correct_BT = logits_BTV.argmax(-1) == data["target_BT"]
    _, metrics = step(make(), params)
    mask = data["loss_mask_BT"]
    assert float(metrics.loss) == pytest.approx((nats_BT * mask).sum() / mask.sum(), rel=1e-5)
    assert float(metrics.accuracy) == pytest.approx((correct_BT * mask).sum() / mask.sum(), rel=1e-6)


def test_targets_outside_the_loss_mask_change_nothing(params):
    one, other = batch(), batch()
    other["target_BT"] = np.where(other["loss_mask_BT"] > 0, other["target_BT"], 0)
    compiled = make()
    a, b = (step(compiled, params, data=data)[0].params for data in (one, other))
    for path in params:
        np.testing.assert_array_equal(a[path], b[path])


def test_with_a_document_mask_one_document_does_not_see_another(params):
    data = batch(rows=1)
    data["segment_BT"] = np.repeat([[0, 1]], 6, axis=1).reshape(1, 12).astype(np.int32)
    data["loss_mask_BT"] = (data["segment_BT"] == 1).astype(np.float32)
    other = {**data, "tokens_BT": np.where(data["segment_BT"] == 0, 3, data["tokens_BT"]).astype(np.int32)}
    for mask, same in ((True, True), (False, False)):
        compiled = make(document_mask=mask)
        losses = [float(step(compiled, params, data=d)[1].loss) for d in (data, other)]
        assert (losses[0] == losses[1]) is same


def test_an_attention_only_stage_leaves_every_other_bit_alone(params):
    compiled = make(trainable="attention")
    state, _ = step(compiled, params, n=2)
    for path in params:
        moved = not np.array_equal(np.asarray(state.params[path]), np.asarray(params[path]))
        assert moved == (".attention" in path), path
    # Frozen parameters have no optimizer state.
    kept = jax.tree.leaves(state.opt_state)
    assert sum(x.size for x in kept) < 2.5 * sum(x.size for p, x in params.items() if ".attention" in p)


def test_a_diverged_state_gives_a_loss_that_is_not_finite(params):
    broken = {path: x * (jnp.nan if path == "embed.table" else 1) for path, x in params.items()}
    assert not np.isfinite(float(step(make(), broken)[1].loss))


def test_recomputing_block_by_block_takes_less_memory(params):
    del params
    config = ModelConfig(**{**vars(CONFIG), "n_layers": 4, "kv_wiring": "", "d_ff": 256})

    def temporary(remat):
        compiled = CompiledStage(config, OPTIMIZER, ComputeConfig(remat=remat), mesh.make(mesh.MeshShape()))
        state = jax.eval_shape(lambda: compiled.init_state(objective.init_params(config, 0)))
        rows = batch(rows=16, T=32)
        return compiled.train.lower(state, rows, jnp.int32(9)).compile().memory_analysis().temp_size_in_bytes

    assert temporary("block") < 0.5 * temporary("none")


def test_bfloat16_compute_keeps_the_router_in_float32():
    config = ModelConfig(**{**vars(CONFIG), "n_experts": 2, "experts_per_token": 1})
    compiled = CompiledStage(config, OPTIMIZER, ComputeConfig(dtype="bfloat16"), mesh.make(mesh.MeshShape()))
    params = objective.init_params(config, 0)
    for path, x in compiled._cast(params).items():
        assert x.dtype == (jnp.float32 if path.endswith(".router") else jnp.bfloat16), path
    # Two experts whose columns differ by less than bfloat16 resolves: rounded, every tie goes to the first.
    for path in [path for path in params if path.endswith(".router")]:
        column_D = params[path][:, 0]
        params[path] = jnp.stack([column_D, column_D * (1 + 2**-12)], axis=1)
    share_E = step(compiled, params)[1].expert_load_E
    assert 0.1 < float(share_E[1]) < 0.9
