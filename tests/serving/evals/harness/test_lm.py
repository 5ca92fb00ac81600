"""lm-evaluation-harness talks to our engine. `make lm-eval` runs it where lm_eval is installed."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from mixattn.evals.longcontext.policies import KeepPolicy
from mixattn.forced import log_likelihoods
from mixattn.keep import Keep
from serving.evals.harness.keep_engine import HarnessSizes
from tests.serving.http.tiny_server import checkpoint

pytestmark = [
    pytest.mark.lm_eval,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed"),
    # Libraries of the harness warn about themselves.
    pytest.mark.filterwarnings("ignore"),
]
OPTIONS = (("sinks", 1), ("recent", 0.5))
POLICIES = [KeepPolicy("full"), KeepPolicy("h2o", 0.4, OPTIONS), KeepPolicy("streaming", 0.4, OPTIONS)]
CONTEXT = "the quick brown fox jumps over the lazy dog and then"


@pytest.fixture(scope="module")
def loaded():
    from serving.evals.harness.lm import HarnessModel

    return HarnessModel.load(checkpoint(), POLICIES, HarnessSizes(96, slots=2, chunk_tok=32))


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=args, idx=0) for args in arguments]


def test_the_three_methods_answer_under_each_policy(loaded):
    from mixattn import hf
    from serving.evals.harness.lm import EngineLM

    net, _ = hf.load(checkpoint())
    context, rest = loaded.encode(CONTEXT, True), loaded.encode(" runs", False)
    for policy in POLICIES:
        lm = EngineLM(loaded, policy)
        [(nats, greedy)] = lm.loglikelihood(instances("loglikelihood", (CONTEXT, " runs")))
        keep = None if policy.fields is None else Keep(**policy.fields)
        want = log_likelihoods(net, [[*context, *rest]], len(context) - 1, keep=keep)[0, 1:].sum()
        assert nats == pytest.approx(want, abs=1e-3)
        assert isinstance(greedy, bool)
        [text] = lm.generate_until(
            instances("generate_until", (CONTEXT, {"until": ["e"], "max_gen_toks": 12, "temperature": 0}))
        )
        assert "e" not in text
        [rolling] = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (CONTEXT * 4,)))
        assert np.isfinite(rolling)
        assert rolling < 0


def test_windows_are_the_harness_own(loaded):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from serving.evals.harness.jobs import windows

    for length in (1, 5, 47, 48, 49, 100, 143):
        ids = list(range(length))
        theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(ids, 7, 47, 1)]
        assert [(list(a), list(b)) for a, b in windows(ids, 7, 47)] == [(list(a), list(b)) for a, b in theirs]


def test_arguments_make_a_model_and_unknown_ones_are_refused():
    from serving.evals.harness.lm import EngineLM

    made = EngineLM.create_from_arg_string(f"pretrained={checkpoint()},scorer=tova,budget=12,max_length=64")
    assert made.policy.fields == {"scorer": "tova", "budget": 12, "sinks": 4, "recent": 0.5}
    assert made.max_length == 64
    with pytest.raises(ValueError, match="'colour'"):
        EngineLM.create_from_arg_string(f"pretrained={checkpoint()},colour=red")


def test_the_command_scores_choices_and_goes_on_after_a_stop(run_module, tmp_path):
    args = [f"--model={checkpoint()}", "--tasks=own_choices", "--choices=4", "--shots=1", "--length=512"]
    args += [f"--workdir={tmp_path}", f"--csv={tmp_path / 'table.csv'}", "--json", "--scorers=h2o"]
    done = run_module("serving.evals", "harness", *args)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["policy"] for row in rows] == ["full", "h2o 0.2"]
    assert all(row["n"] == 4 for row in rows)
    lines = (tmp_path / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:-3])
    again = run_module("serving.evals", "harness", *args)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["rows"] == rows
    other = run_module("serving.evals", "harness", *args, "--sinks=2")
    assert other.returncode == 2
    assert "sinks=4, not 2" in other.stderr


def test_no_torch_is_imported(loaded):
    assert "torch" not in sys.modules
