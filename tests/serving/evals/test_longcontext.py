"""The suite through the engine: the same answers as without, and what an engine does not do is refused."""

import dataclasses

import pytest
import tokenizers
from flax import nnx

from mixattn import ModelConfig, Transformer, hf
from mixattn.evals.longcontext.checkpoint import CheckpointModel
from mixattn.evals.longcontext.journal import AnswerLog
from mixattn.evals.longcontext.policies import FULL, KeepPolicy, grid
from mixattn.evals.longcontext.suite import SuiteGrid, run
from serving.evals import longcontext
from serving.evals.longcontext import EngineBackedModel

CONFIG = ModelConfig(
    n_layers=1,
    kv_wiring="0",
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    vocab_size=256,
    dtype="float32",
    max_positions=512,
)
OPTIONS = {"sinks": 2, "recent": 0.25, "window": 8}
POLICIES = (*grid(["h2o", "snapkv"], ["0.4"], **OPTIONS), KeepPolicy("h2o", 24, tuple(OPTIONS.items())))
MORE = tuple(grid(["h2o_mean", "tova", "streaming", "knorm", "random", "h2o+always"], ["0.3"], **OPTIONS))
SMALL = SuiteGrid(("needle",), (400,), (0.5,), POLICIES, samples=3, batch=4)  # lengths are bytes here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with random weights that reads bytes of text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["some text"], tokenizers.trainers.BpeTrainer(vocab_size=256, initial_alphabet=letters)
    )
    path = tmp_path_factory.mktemp("checkpoint")
    hf.save(Transformer(CONFIG, rngs=nnx.Rngs(0)), path, made)
    return path


def answers(model, grid, folder):
    log = AnswerLog(folder, {})
    run(grid, model, log, lambda more, doing: None)
    return {key: answer["answer"] for key, answer in log.answers.items()}


@pytest.mark.parametrize("policies", [POLICIES, pytest.param(MORE, marks=pytest.mark.long)])
def test_every_greedy_answer_is_that_of_the_model_without_a_server(policies, checkpoint, tmp_path):
    small = dataclasses.replace(SMALL, policies=policies)
    direct = answers(CheckpointModel(checkpoint), small, tmp_path / "direct")
    engine = answers(EngineBackedModel(checkpoint, 0, small, slots=2), small, tmp_path / "engine")
    assert engine == direct
    full = {key[:4]: said for key, said in direct.items() if key[4] == FULL}
    assert any(said != full[key[:4]] for key, said in direct.items())  # budgets do change answers here


def test_policies_that_differ_in_scorer_and_budget_share_an_engine_and_others_do_not():
    kinds = {longcontext.slab_kind(policy) for policy in POLICIES if policy.scorer != FULL}
    assert len(kinds) == 1
    for other in ("h2o+always", "h2o+owner_only", "h2o+prompt", "h2o+one_recent"):
        (_, policy) = grid([other], ["0.4"], sinks=2, recent=0.25, window=8)
        assert longcontext.slab_kind(policy) not in kinds


def test_a_slab_holds_the_largest_budget_and_what_a_cut_prompt_grows_by():
    (kind,) = {longcontext.slab_kind(policy) for policy in POLICIES if policy.scorer != FULL}
    made = longcontext.slab_settings(dict(kind), POLICIES, prompt_tok=100, new_tok=10)
    assert (made.slab_tok, made.scorer, made.when) == (50, "h2o", "decode")
    once = [policy for policy in POLICIES if policy.scorer == "snapkv"]
    assert longcontext.slab_settings(dict(kind), once, 100, 10).when == "prompt"
    assert longcontext.slab_settings({}, [KeepPolicy(FULL)], 100).slab_tok == 0


def test_blockwise_prefill_and_unseen_questions_are_refused(checkpoint):
    (_, blockwise) = grid(["h2o+blockwise"], ["0.4"])
    with pytest.raises(ValueError, match="cuts prompts by blocks, and an engine cuts whole ones"):
        EngineBackedModel(checkpoint, 0, dataclasses.replace(SMALL, policies=(blockwise,)), slots=2)
    model = EngineBackedModel(checkpoint, 0, SMALL, slots=2)
    with pytest.raises(ValueError, match="an engine cuts whole prompts"):
        model.answers([], POLICIES[0], "agnostic")
