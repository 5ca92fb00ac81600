"""Models that others wrote: directories in Hugging Face layout are served as they are."""

from pathlib import Path

import numpy as np
import pytest

from mixattn import hf
from serving.request import Request, Sampling
from tests.serving.tiny import check_against_teacher, engine

FIXTURES = Path(__file__).parents[2] / "parity" / "fixtures"
USUAL = ("gemma3_text", "qwen3")  # windows, soft caps and norms of their own; plain grouped queries
FAMILIES = sorted(path.name for path in FIXTURES.iterdir())


@pytest.mark.parametrize(
    "family", [*USUAL, *(pytest.param(f, marks=pytest.mark.long) for f in FAMILIES if f not in USUAL)]
)
def test_a_hugging_face_directory_is_served(family):
    """Greedy tokens are those of the model without an engine, and the first is what transformers says."""
    net, config = hf.load(FIXTURES / family)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, config.vocab_size, n).tolist() for n in (1, 7, 20, 33)]
    want = np.load(FIXTURES / family / "want.npz")
    theirs, logits_BTV = want["tokens"], want["logits"]
    eng = engine(net, debug=True)
    requests = [Request(client="a", prompt_ids=ids, sampling=Sampling(max_tokens=9)) for ids in drawn]
    check_against_teacher(requests, eng.run(requests), net)
    one = Sampling(max_tokens=1)
    outputs = eng.run([Request(client="a", prompt_ids=ids.tolist(), sampling=one) for ids in theirs])
    assert [o.output_ids for o in outputs] == logits_BTV[:, -1].argmax(-1)[:, None].tolist()
