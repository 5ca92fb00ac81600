"""The planner against the artifact's figures, and against brute force."""

import dataclasses

import pytest

from mixattn.spec import ModelConfig
from serving.offload.durations import fastest_schedule
from serving.offload.hardware import GIB, HARDWARE, hardware
from serving.offload.plan import DEVICE_SHARE, HOST_SHARE, Infeasible, OffloadPlanner, OffloadWorkload
from serving.offload.search import search
from serving.offload.shapes import MODELS, MixtureShape, named_model

MIXTRAL = MixtureShape(named_model("mixtral-8x7b"))
ARTIFACT_HOST_BYTES = 197_880_360_960


def planner(machine: str, prompt_tok: int, generate_tok: int, **changes: float) -> OffloadPlanner:
    chosen = dataclasses.replace(hardware(machine), **changes)
    return OffloadPlanner(MIXTRAL, chosen, OffloadWorkload(prompt_tok, generate_tok))


def test_the_artifacts_example_is_met_to_nine_digits():
    plan = search(planner("l4", 77, 32))
    seconds = planner("l4", 77, 32).seconds(plan.policy)
    assert (plan.policy.micro_batch, plan.policy.micro_batches) == (324, 14)
    assert plan.policy.resident == pytest.approx(0.055884688, abs=1e-9)
    assert seconds.link == pytest.approx(0.154893918, abs=1e-9)
    assert seconds.device == pytest.approx(0.129493794, abs=1e-9)
    assert seconds.host == pytest.approx(0.025727523, abs=1e-9)
    assert plan.tokens_per_s == pytest.approx(944.663, abs=1e-3)
    assert seconds.bottleneck == "link"


@pytest.mark.parametrize(("generate_tok", "expected"), [(64, (228, 16)), (128, (164, 16)), (256, (164, 10))])
def test_longer_generations_of_the_example(generate_tok, expected):
    policy = search(planner("l4", 77, generate_tok)).policy
    assert (policy.micro_batch, policy.micro_batches) == expected


@pytest.mark.parametrize("generate_tok", [32, 256])
def test_padded_prompts_on_a_t4_give_table_5(generate_tok):
    policy = search(planner("t4", 418, generate_tok)).policy
    assert (policy.micro_batch, policy.micro_batches, policy.batch) == (36, 14, 504)


def test_unpadded_prompts_on_a_t4():
    policy = search(planner("t4", 77, 128, host_bytes=ARTIFACT_HOST_BYTES)).policy
    assert (policy.micro_batch, policy.micro_batches) == (164, 14)


def test_weights_of_mixtral_have_the_published_size():
    experts = MIXTRAL.mixture_layers * MIXTRAL.layer_expert_bytes
    assert (experts + MIXTRAL.resident_bytes) / GIB == pytest.approx(86.5, abs=0.05)
    assert MIXTRAL.resident_bytes / GIB == 2.5


def fits(plan: OffloadPlanner, policy) -> bool:
    device = sum(plan.device_use(policy).values()) <= DEVICE_SHARE * plan.hardware.device_bytes + 1
    return device and sum(plan.host_use(policy).values()) <= HOST_SHARE * plan.hardware.host_bytes + 1


@pytest.mark.parametrize("size", [(324, 14), (4, 100), (36, 3)])
def test_no_share_of_a_fine_grid_is_faster_than_the_closed_form(size):
    plan = planner("l4", 77, 32)
    best = plan.fit(*size)
    grid = [dataclasses.replace(best, resident=i / 2000) for i in range(2001)]
    allowed = [policy for policy in grid if fits(plan, policy)]
    assert fits(plan, best)
    assert allowed
    assert plan.seconds(best).bound <= min(plan.seconds(policy).bound for policy in allowed)
    assert best.resident - max(policy.resident for policy in allowed) < 1 / 2000


@pytest.mark.parametrize("device_gib", [20, 24, 48])
def test_no_pair_of_shares_is_faster_than_the_corner_chosen(device_gib):
    plan = planner("l4", 418, 64, device_bytes=device_gib * GIB)
    best = plan.fit(36, 8, device_attention=True)
    steps = [i / 60 for i in range(61)]
    grid = [dataclasses.replace(best, resident=w, kv_resident=c) for w in steps for c in steps]
    assert fits(plan, best)
    assert plan.seconds(best).bound <= min(plan.seconds(p).bound for p in grid if fits(plan, p)) + 1e-12


@pytest.mark.parametrize(
    "field",
    ["device_bytes", "host_bytes", "device_Bps", "host_Bps", "link_Bps", "device_flops", "host_flops"],
)
def test_more_of_anything_never_lowers_the_predicted_optimum(field):
    base = OffloadPlanner(
        MixtureShape(
            ModelConfig(*(6, 512, 8, 2, 64, 1024, 1000), n_experts=8, experts_per_token=2, dtype="bfloat16")
        ),
        dataclasses.replace(hardware("l4"), device_bytes=0.12 * GIB, host_bytes=0.4 * GIB),
        OffloadWorkload(77, 32),
    )
    rates = []
    for factor in (1.0, 1.3, 2.0):
        machine = dataclasses.replace(base.hardware, **{field: getattr(base.hardware, field) * factor})
        rates.append(search(dataclasses.replace(base, hardware=machine), first_peak=False).tokens_per_s)
    assert rates == sorted(rates)


def test_with_every_expert_resident_nothing_is_streamed():
    plan = planner("l4", 77, 32, device_bytes=400 * GIB)
    policy = plan.fit(36, 2)
    assert policy.resident == 1
    assert plan.seconds(policy).link == 0


@pytest.mark.parametrize(("memory", "field"), [("device", "device_bytes"), ("host", "host_bytes")])
def test_too_little_memory_is_named_with_what_would_do(memory, field):
    small = planner("l4", 77, 32, **{field: 2 * GIB})
    with pytest.raises(Infeasible, match=rf"{memory} memory.* at least ([0-9.]+) GiB would do") as caught:
        search(small)
    enough = float(str(caught.value).split("at least ")[1].split()[0]) + 0.01
    assert search(planner("l4", 77, 32, **{field: enough * GIB})).policy.batch >= 1


def test_windows_and_shared_kv_allow_a_larger_batch():
    plain = planner("l4", 1024, 64)
    config = dataclasses.replace(
        MIXTRAL.config, kv_wiring="_".join(f"{i - i % 2}s" for i in range(32)), window=256
    )
    lean = dataclasses.replace(plain, shape=MixtureShape(config))
    assert search(lean).tokens_per_s > 1.2 * search(plain).tokens_per_s


def test_dense_layers_stream_nothing():
    half = dataclasses.replace(MIXTRAL.config, dense_layers=tuple(range(0, 32, 2)))
    plan = dataclasses.replace(planner("l4", 77, 32), shape=MixtureShape(half))
    policy = plan.fit(36, 14)
    assert plan.step_seconds(policy) < planner("l4", 77, 32).step_seconds(planner("l4", 77, 32).fit(36, 14))


def test_one_micro_batch_gains_nothing_from_pages():
    plan = planner("l4", 77, 32)
    assert fastest_schedule(plan, plan.fit(324, 14)) == "s1"
    assert fastest_schedule(plan, plan.fit(36, 1)) != "s1"


def test_every_preset_plans():
    for machine in HARDWARE.values():
        for config in MODELS.values():
            if MixtureShape(config).layer_expert_bytes * config.n_layers < HOST_SHARE * machine.host_bytes:
                plan = OffloadPlanner(MixtureShape(config), machine, OffloadWorkload(77, 32))
                assert plan.fit(1, 1).batch == 1


@pytest.mark.parametrize(("prompt", "generate"), [(0, 32), (77, 1)])
def test_an_empty_workload_is_refused(prompt, generate):
    with pytest.raises(ValueError, match="at least 1 and 2"):
        OffloadWorkload(prompt, generate)


def test_an_efficiency_above_one_is_refused():
    with pytest.raises(ValueError, match=r"efficiency of the link is 1\.5"):
        hardware("l4").efficiency(link=1.5)
