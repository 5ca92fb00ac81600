"""Prompts and plans: the asked-for lengths and prefixes; a mistake is one sentence."""

import os.path

import numpy as np
import pytest

from serving.bench.client.mix import ClientPlan, parse
from serving.bench.client.prompts import PromptMaker, length_range, of_file


def rng():
    return np.random.default_rng(0)


def test_lengths_cover_the_range_and_ids_the_vocabulary():
    made = PromptMaker(rng(), vocab=64).random(2000, 10, 4, 0.5)
    assert {len(p.prompt) for p in made} == set(range(5, 16))
    assert {p.output_tok for p in made} == set(range(2, 7))
    assert {i for p in made for i in p.prompt} == set(range(8, 64))
    assert length_range(100, 0.0) == (100, 100)


@pytest.mark.parametrize("vocab", [0, 500])
def test_a_group_shares_its_prefix_and_nothing_else(vocab):
    made = PromptMaker(rng(), vocab).shared(12, 3, 20, 5, 7)
    parts = [p.prompt if vocab else p.prompt.split(" ") for p in made]
    assert {len(p) for p in parts} == {25}
    assert len({tuple(p[:20]) for p in parts}) == 3
    assert len({tuple(p[20:]) for p in parts}) == 12


def test_a_seed_gives_the_same_prompts_again():
    assert PromptMaker(rng(), 99).random(5, 9, 9, 0.3) == PromptMaker(rng(), 99).random(5, 9, 9, 0.3)


def test_a_client_is_a_name_and_fields_over_the_flags():
    plan = parse("light rate=2 output_len=16 key=LIGHT_KEY", ClientPlan(input_len=33))
    assert (plan.name, plan.rate, plan.output_len, plan.input_len, plan.key) == (
        "light",
        2.0,
        16,
        33,
        "LIGHT_KEY",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rate=2", "must begin with a name"),
        ("", "must begin with a name"),
        ("a speed=2", "names 'speed'"),
        ("a rate=fast", "rate=fast is not a number"),
        ("a rate=0", "must be above 0"),
        ("a requests=0", "must be at least 1"),
        ("a duration_s=3", "give it a rate or a concurrency"),
        ("a range_ratio=1", "must lie in 0..1"),
        ("a start_s=-1", "must not be negative"),
    ],
)
def test_a_bad_client_is_one_sentence(text, says):
    with pytest.raises(ValueError, match=says):
        parse(text, ClientPlan())


def test_a_file_of_prompts_is_read_again_when_it_is_short(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "é", "output_tokens": 3}\n\n{"prompt": [1, 2]}\n', encoding="utf-8")
    assert [(p.prompt, p.output_tok) for p in of_file(path, 3, 8)] == [("é", 3), ([1, 2], 8), ("é", 3)]
    for bad in ("{}", "[]", "nonsense", '{"prompt": 3}', '{"prompt": "a", "output_tokens": 0}'):
        path.write_text('{"prompt": "a"}\n' + bad)
        with pytest.raises(ValueError, match="line 2"):
            of_file(path, 3, 8)
    with pytest.raises(ValueError, match="cannot be read"):
        of_file(tmp_path / "none", 3, 8)
    assert os.path.exists(path)
