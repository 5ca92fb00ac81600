"""Judge prompts: ours (`templates.jsonl`), or a file in FastChat's form (`judge_prompts.jsonl`).

A line holds `name`, `type` ("pairwise" or "single"), `system_prompt`, `prompt_template` with placeholders in
braces, and `output_format`. Which template judges what follows from its placeholders: `ref_answer_1` makes it
one for graded questions, `question_2` one for the second turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from mixattn.evals.judge.lines import Row, read_existing_rows

OWN = Path(__file__).parent / "templates.jsonl"
FORMATS = {"pairwise": ("[[A]]", "[[rating_a,rating_b]]", "[[A>>B]]"), "single": ("[[rating]]",)}
SHOWN = {"pairwise": ("answer_a", "answer_b"), "single": ("answer",)}


@dataclass(frozen=True)
class JudgeTemplate:
    """One judge prompt.

    Attributes:
      kind: "pairwise" or "single".
      output_format: the form of the verdict that it asks for.
      graded: it shows a reference.
      second_turn: it shows two turns and asks about the second.
    """

    name: str
    kind: str
    system_prompt: str
    prompt: str
    output_format: str
    graded: bool
    second_turn: bool

    def render(self, fields: Mapping[str, str]) -> str:
        """The user prompt. Braces in the fields are safe; only the template's own are placeholders."""
        return self.prompt.format_map(fields)


def load(path: Path = OWN) -> list[JudgeTemplate]:
    """The templates of a file.

    Raises:
      ValueError: a line lacks a field, or names a placeholder that does not exist.
    """
    rows = read_existing_rows(path)
    return [_template(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


def pick(
    templates: Sequence[JudgeTemplate],
    kind: str,
    *,
    graded: bool,
    second_turn: bool,
    five_labels: bool = False,
) -> JudgeTemplate:
    """The first template that fits.

    Raises:
      ValueError: none does.
    """
    for template in templates:
        fits = (template.kind, template.graded, template.second_turn) == (kind, graded, second_turn)
        if fits and (template.output_format == "[[A>>B]]") == five_labels:
            return template
    need = f"type {kind}, {'with' if graded else 'without'} ref_answer_1"
    need += f", {'with' if second_turn else 'without'} question_2"
    need += ", output_format [[A>>B]]" if five_labels else ""
    raise ValueError(f"no template of {need}; there are {', '.join(each.name for each in templates)}")


def _template(where: str, row: Row) -> JudgeTemplate:
    needed = ("name", "type", "system_prompt", "prompt_template", "output_format")
    for field in needed:
        if not isinstance(row.get(field), str):
            raise ValueError(f"{where}: the field {field!r} is missing or not text")
    name, kind, system, prompt, output_format = (row[field] for field in needed)
    if kind not in FORMATS:
        raise ValueError(f"{where}: type is {kind!r}, not one of {', '.join(FORMATS)}")
    if output_format not in FORMATS[kind]:
        raise ValueError(f"{where}: output_format is {output_format!r}, not {' or '.join(FORMATS[kind])}")
    used = _placeholders(where, prompt)
    second_turn = "question_2" in used
    allowed = _allowed(kind, second_turn)
    if unknown := sorted(used - allowed):
        raise ValueError(f"{where}: {{{unknown[0]}}} is not one of {', '.join(sorted(allowed))}")
    return JudgeTemplate(name, kind, system, prompt, output_format, "ref_answer_1" in used, second_turn)


def _allowed(kind: str, second_turn: bool) -> set[str]:
    if not second_turn:
        return {"question", "ref_answer_1", *SHOWN[kind]}
    answers = {f"{name}_{turn}" for name in SHOWN[kind] for turn in (1, 2)}
    return {"question_1", "question_2", "ref_answer_1", "ref_answer_2", *answers}


def _placeholders(where: str, prompt: str) -> set[str]:
    """Names in braces; attribute access, indexing and format specifications are refused."""
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as why:
        raise ValueError(
            f"{where}: prompt_template has an unmatched brace ({why}); write {{{{ for {{"
        ) from why
    for _, name, spec, conversion in parts:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise ValueError(f"{where}: {{{name}}} is not a plain placeholder; write {{{{ for {{")
    return {name for _, name, _, _ in parts if name is not None}
