"""What Clover checks: code, annotation and docstring of one method, and the six edges between them."""

from dataclasses import dataclass, replace
from typing import Literal

from mixattn.evals.clover.method import Clause, Method, annotation_text, program

type Edge = Literal["anno-sound", "anno-complete", "doc2code", "doc2anno", "anno2doc", "code2doc"]
EDGES: tuple[Edge, ...] = ("anno-sound", "anno-complete", "doc2code", "doc2anno", "anno2doc", "code2doc")

type Kind = Literal["right", "C1", "C2", "C3", "C6"]
KINDS: tuple[Kind, ...] = ("right", "C1", "C2", "C3", "C6")
WHAT_IS_WRONG = {
    "right": "nothing",
    "C1": "docstring",
    "C2": "annotation",
    "C3": "annotation and docstring",
    "C6": "code and annotation",
}


@dataclass(frozen=True, slots=True)
class Triple:
    """Code, annotation and docstring of one method.

    Attributes:
      name: of the program; a wrong triple has the name of the right one that it was made from.
      method: signature, annotation and body.
      tests: a `Main` that calls the method and prints the results, with its helpers; may be empty.
    """

    name: str
    kind: Kind
    method: Method
    docstring: str
    tests: str = ""

    @property
    def annotation(self) -> str:
        return annotation_text(self.method.clauses)

    def program(self) -> str:
        """The whole method as a program."""
        m = self.method
        return program(m.signature, m.clauses, m.code, m.others)


def with_annotation(method: Method, clauses: tuple[Clause, ...]) -> Method:
    return replace(method, clauses=clauses)
