"""Judge prompts: ours hold what the paper asks for, FastChat's form loads, hostile templates do not."""

import json

import pytest

from mixattn.evals.judge import templates
from mixattn.evals.judge.bench import Question
from mixattn.evals.judge.matches import make
from tests.mixattn.evals.judge.benches import write_rows

RECORD = {
    "name": "pair-v2",
    "type": "pairwise",
    "system_prompt": "Judge.",
    "prompt_template": "{question} A:{answer_a} B:{answer_b} {{literal}}",
    "description": "",
    "category": "general",
    "output_format": "[[A]]",
}


def test_ours_cover_every_case_and_ask_for_their_verdict_after_an_explanation():
    ours = templates.load()
    for kind in ("pairwise", "single"):
        for graded in (False, True):
            for second in (False, True):
                each = templates.pick(ours, kind, graded=graded, second_turn=second)
                system = each.system_prompt
                assert "impartial" in system
                assert system.index("explain") < system.rindex("[[")
                assert ("reference" in system.lower()) == graded
                assert ("second question" in system) == second
                assert "length" in system
                assert "names" in system or "name of its author" in system
    five = templates.pick(ours, "pairwise", graded=False, second_turn=False, five_labels=True)
    assert all(label in five.system_prompt for label in ("[[A>>B]]", "[[A=B]]", "[[B>>A]]"))


def test_a_template_in_fastchats_form_is_used_by_its_placeholders(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [RECORD])
    found = templates.load(path)
    question = Question(1, "writing", ("What is {x}?",))
    answers = {"m": {1: ("{answer_b} [[B]]",)}, "n": {1: ("fine",)}}
    match = make("pairwise_all", [question], answers, {}, found)[0]
    assert match.prompt(0) == "What is {x}? A:{answer_b} [[B]] B:fine {literal}"
    assert match.prompt(1) == "What is {x}? A:fine B:{answer_b} [[B]] {literal}"
    with pytest.raises(ValueError, match="no template of type single"):
        templates.pick(found, "single", graded=False, second_turn=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_template": "{answer_a.__class__}"}, "not a plain placeholder"),
        ({"prompt_template": "{question!r}"}, "not a plain placeholder"),
        ({"prompt_template": "{question:>99999999}"}, "not a plain placeholder"),
        ({"prompt_template": "{question[0]}"}, "not a plain placeholder"),
        ({"prompt_template": "{}"}, "not a plain placeholder"),
        ({"prompt_template": "{secret}"}, "is not one of"),
        ({"prompt_template": "{question"}, "unmatched brace"),
        ({"type": "triple"}, "type is 'triple'"),
        ({"output_format": "[[D]]"}, "output_format"),
        ({"system_prompt": None}, "'system_prompt' is missing"),
    ],
)
def test_a_wrong_template_is_refused_by_row(tmp_path, change, message):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | change) + "\n")
    with pytest.raises(ValueError, match=f"row 2: .*{message}"):
        templates.load(path)
