"""What the model is asked, in our words, and how its answers are read."""

import re
from typing import Literal

from mixattn.evals.clover.method import Method, annotation_text

type Task = Literal["anno-complete", "doc2code", "doc2anno", "anno2doc", "code2doc", "judge"]

_CODE_ONLY = "Answer with the complete method, signature unchanged, in one ```dafny block and nothing else."
_DOC_ONLY = (
    "Answer with one to three sentences in plain English that fix the result for every permitted input."
    " Say what the method achieves and what it demands of its inputs, not how it proceeds."
)
INSTRUCTIONS: dict[Task, str] = {
    "anno-complete": "Write the body of this Dafny method so that the verifier proves its specification. Add"
    f" the loop invariants that the proof needs; do not use assume. {_CODE_ONLY}",
    "doc2code": f"Write a Dafny method that does what its description says. {_CODE_ONLY}",
    "doc2anno": "Write the specification (requires, modifies and ensures clauses) of a Dafny method from its"
    " description. Make it as strong as the description and no stronger. Do not write a body. Answer with the"
    " signature, unchanged, and the clauses below it, in one ```dafny block and nothing else.",
    "anno2doc": f"Describe the Dafny method that has this specification. {_DOC_ONLY}",
    "code2doc": f"Describe what this Dafny method does. {_DOC_ONLY}",
    "judge": "Two descriptions of a method follow. Do they demand the same of the inputs and fix the same"
    " result and the same changes for every input? Answer"
    " with the single word YES or NO first, then the reason.",
}
_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_FIRST_WORD = re.compile(r"[^A-Za-z]*([A-Za-z]+)")


def ask(task: Task, material: str) -> str:
    return f"{INSTRUCTIONS[task]}\n\n{material}\n"


def from_annotation(task: Task, method: Method) -> str:
    """For "anno-complete" and "anno2doc": signature and annotation."""
    parts = [method.others.strip(), method.signature, annotation_text(method.clauses)]
    return ask(task, "\n".join(filter(None, parts)))


def from_docstring(task: Task, docstring: str, method: Method) -> str:
    """For "doc2code" and "doc2anno": signature and docstring, nothing else of the method."""
    return ask(task, f"Description:\n{docstring}\n\nSignature:\n{method.signature}")


def from_code(method: Method) -> str:
    """For "code2doc": the body, with the preconditions as assertions at its start."""
    asserts = "".join(f"  assert {c.text};\n" for c in method.clauses if c.kind == "requires")
    return ask("code2doc", f"{method.signature}\n{{\n{asserts}{method.body[1:]}")


def judge(first: str, second: str) -> str:
    return ask("judge", f"First description:\n{first}\n\nSecond description:\n{second}")


def again(prompt: str, answer: str, feedback: str) -> str:
    """The next turn: the answer and what was wrong with it."""
    said = f"Your answer was:\n{answer}\n\nIt was refused:\n{feedback}"
    return f"{prompt}\n{said}\n\nCorrect it and answer again.\n"


def block(answer: str) -> str:
    """The first fenced block of an answer, or all of it."""
    found = _FENCE.search(answer)
    return (found[1] if found else answer).strip()


def says_yes(answer: str) -> bool | None:
    """The first word of an answer: YES, NO, or None if it is another word."""
    word = _FIRST_WORD.match(answer)
    return {"YES": True, "NO": False}.get(word[1].upper()) if word else None
