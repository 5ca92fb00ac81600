"""Distillation brings a student nearer its original, trains what it is told to, and repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixattn.uptrain import rewire
from tests.train.experiments.test_recover import CONFIG, TOKENS, distance, original  # noqa: F401
from train import objective
from train.experiments.distil import distil, divergence


def test_the_divergence_is_that_of_the_two_distributions():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (one, other))
    expected = np.mean(np.sum(p * np.log(p / q), axis=-1))
    found = divergence(jax.nn.log_softmax(jnp.asarray(one)), jnp.asarray(other))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_steps_bring_the_student_nearer_and_leave_other_parameters(original):  # noqa: F811
    student, seen = rewire(original, "cla"), []
    better = distil(
        student,
        original,
        TOKENS,
        steps=12,
        learning_rate=2e-3,
        batch=8,
        report=lambda step, nats: seen.append(nats),
    )
    assert len(seen) == 12
    assert distance(original, better) < 0.95 * distance(original, student)
    before, after = objective.flatten(student)[1], objective.flatten(better)[1]
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if ".attention." in path}


def test_no_step_changes_nothing(original):  # noqa: F811
    student = rewire(original, "cla")
    same = distil(student, original, TOKENS, steps=0, learning_rate=1e-3)
    np.testing.assert_array_equal(same(jnp.asarray(TOKENS)), student(jnp.asarray(TOKENS)))
    assert same.config == student.config != CONFIG
