"""Memory checks for chips that this machine does not have."""

import dataclasses
import json
import re

import jax
import pytest

from mixattn import ModelConfig
from mixattn.hf.tensors import abstract_model
from mixattn.spec import kv_bytes
from mixattn.tools import aot_fit
from pallas_kernels import aot

SMALL = ModelConfig(
    n_layers=3,
    d_model=256,
    n_heads=4,
    n_kv_heads=2,
    head_dim=128,
    d_ff=256,
    vocab_size=512,
    kv_wiring="0_1s_0",
    window=128,
    dtype="bfloat16",
)
KERNEL = {"v5e": "tpu_custom_call", "h100": "mosaic_gpu"}


def steps(chip, model=SMALL, **sizes):
    if why := aot.missing(chip):
        pytest.skip(why)
    return aot_fit.serving_steps(
        model, chip, **{"batch": 4, "context": 1024, "chunk": 128, "page": 64} | sizes
    )


@pytest.mark.aot
@pytest.mark.parametrize("chip", KERNEL)
def test_a_small_model_fits_with_the_kernels_of_the_chip(chip):
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_model(SMALL)[1]))
    held += kv_bytes(SMALL, 4 * 1024)
    for name, lower in steps(chip).items():
        lowered = lower()
        assert KERNEL[chip] in lowered.as_text(), name
        found = aot.compiled_memory(chip, lambda lowered=lowered: lowered)
        assert found.fits
        assert held <= found.arguments < 1.2 * held + (1 << 20)


@pytest.mark.aot
@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "mixture"])
@pytest.mark.parametrize("chip", ["v5e", "v6e", "h100"])
def test_a_quantised_model_multiplies_integers_and_holds_half_of_bfloat16s_bytes(chip, experts):
    """Its programs hold products of int8 to int32, as many as without quantisation or fewer."""
    model = dataclasses.replace(SMALL, quantize="int8", n_experts=experts, experts_per_token=min(2, experts))
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_model(model)[1]))
    plain = sum(
        x.size * x.dtype.itemsize
        for x in jax.tree.leaves(abstract_model(dataclasses.replace(model, quantize=""))[1])
    )
    assert held < 0.53 * plain
    for name, lower in steps(chip, model).items():
        lowered = lower()
        text = lowered.as_text()
        products = re.findall(r"(?:dot_general|ragged_dot)[^\n]*xi8>[^\n]*-> tensor<[0-9x]*xi32>", text)
        # q k v, o and the two of the feed-forward in each layer, and the head.
        assert len(products) >= 4 * SMALL.n_layers + 1 - 2 * SMALL.n_layers * bool(experts), name
        found = aot.compiled_memory(chip, lambda lowered=lowered: lowered)
        assert found.fits
        assert found.arguments < 1.2 * (held + kv_bytes(model, 4 * 1024)) + (1 << 20)


@pytest.mark.aot
@pytest.mark.parametrize("chip", KERNEL)
def test_a_cache_larger_than_the_chip_does_not_fit(chip):
    """128 rows of a million tokens, 1 KiB each, are 128 GiB in the full owner alone."""
    found = aot.compiled_memory(chip, steps(chip, batch=128, context=1 << 20)["decode"])
    assert not found.fits
    assert found.total > found.capacity


def test_a_refusal_says_how_much_was_needed():
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required (32.00G) exceeds available"
    )
    found = aot.parse_out_of_memory(f"{said} HBM (15.75G). HLO module: jit_f.", 16 << 30)
    assert (found.total, found.fits, found.why) == (32 << 30, False, f"{said} HBM (15.75G)")
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        aot.parse_out_of_memory(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem (18M of 16M).", 16 << 30
        )


def test_a_program_that_needs_a_byte_too_many_does_not_fit():
    assert aot.CompiledMemory(60, 40, 100, 100).fits
    assert not aot.CompiledMemory(61, 40, 101, 100).fits


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_a_target_without_its_compiler_is_skipped_by_name(chip, monkeypatch, capsys):
    monkeypatch.setattr(aot, "missing", lambda asked: "no compiler" if asked == chip else None)
    monkeypatch.setattr(aot, "compiled_memory", lambda asked, lower: aot.CompiledMemory(1, 2, 3, 4))
    assert aot_fit.report(["v5e", "h100"], lambda chip: {"decode": None}, as_json=True)
    said = capsys.readouterr()
    assert f"{chip}: skipped, no compiler" in said.err
    (row,) = map(json.loads, said.out.splitlines())
    assert row["fits"]
    assert row["target"] != chip


@pytest.mark.parametrize(
    ("targets", "sentence"), [(["v7x"], "names 'v7x'"), (["v5e"], "nothing can be compiled for v5e")]
)
def test_what_cannot_be_asked_is_one_sentence(targets, sentence, monkeypatch):
    monkeypatch.setattr(aot, "missing", lambda chip: "not installed")
    with pytest.raises(ValueError, match=sentence):
        aot_fit.report(targets, lambda chip: {}, as_json=False)


def test_an_unknown_target_ends_the_command_with_2(run_module):
    done = run_module("mixattn.tools.aot_fit", "--config=configs/demo.py", "--target=v7x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be among v5e, v6e, h100" in done.stderr
