"""Are two annotations of one method equivalent? Four lemmas with empty bodies, proved by the verifier.

The preconditions must imply each other. Under both, so must the postconditions, together with what the
`modifies` clauses leave unchanged. A method that reads the heap gets two-state lemmas, its precondition in
the old state. Sound and incomplete: "different" means that a proof failed. What the lemmas cannot express is
"cannot say". A known gap: `modifies a` with `a[..] == old(a[..])` is not proved equal to modifying nothing.
"""

import re
from dataclasses import dataclass
from typing import Literal

from mixattn.evals.clover.method import Clause, Method, Parameter
from mixattn.evals.clover.refusals import unproved
from mixattn.evals.dafny.lexer import lex
from mixattn.evals.dafny.protocol import Verification, Verify, located

type Likeness = Literal["equal", "different", "malformed", "cannot say"]
_ARRAY = re.compile(r"array\d* ?(<.*>)?")
_MAY_BE_CLASS = {"class", "trait", "iterator"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether two things are alike, and why not or why that is unknown."""

    likeness: Likeness
    reason: str = ""


def compare_annotations(verify: Verify, method: Method, other: tuple[Clause, ...]) -> Comparison:
    """Compares `other` with the annotation of `method`; "malformed" if the fault is in `other` alone."""
    try:
        programs = equivalence(method, other), equivalence(method, method.clauses)
        refused = unproved(programs[0])
    except ValueError as why:
        return Comparison("cannot say", str(why))
    if refused:
        return Comparison("malformed", refused)
    found = verify(programs[0])
    if _proved(found):
        return Comparison("equal")
    if found.verdict not in ("failed", "parse", "resolve"):
        return Comparison("cannot say", f"the lemmas' verdict is {found.verdict}")
    if not _proved(verify(programs[1])):  # an annotation equals itself, unless the lemmas cannot express it
        return Comparison("cannot say", "the annotation cannot be shown to be equivalent to itself")
    if found.verdict == "failed":
        return Comparison("different", "equivalence was not proved")
    return Comparison("malformed", located(found))


def _proved(found: Verification) -> bool:
    return found.verdict == "verified" and found.n_verified >= 4


def equivalence(method: Method, other: tuple[Clause, ...]) -> str:
    """A program whose four lemmas say that `other` is equivalent to the annotation of `method`.

    Raises:
      ValueError: lemmas cannot express it; the sentence says what.
    """
    heap = _heap(method)
    first, second = method.clauses, other
    pre = [_of(clauses, "requires") for clauses in (first, second)]
    arrays = tuple(p for p in method.inputs if p in heap)
    post = [_of(clauses, "ensures") + _frame(arrays, clauses) for clauses in (first, second)]
    before = [f"old({p})" for p in pre[0] + pre[1]] if heap else pre[0] + pre[1]
    inputs = _formals(method.inputs)
    results = ", ".join(filter(None, [inputs, _formals(method.outputs, new=bool(heap))]))
    generics, two = method.type_parameters, "twostate " if heap else ""
    lemmas = [
        _lemma(f"lemma PreForward{generics}({inputs})", pre[0], pre[1]),
        _lemma(f"lemma PreBackward{generics}({inputs})", pre[1], pre[0]),
        _lemma(f"{two}lemma PostForward{generics}({results})", before + post[0], post[1]),
        _lemma(f"{two}lemma PostBackward{generics}({results})", before + post[1], post[0]),
    ]
    return "\n".join([*filter(None, [method.others.strip()]), *lemmas])


def _lemma(header: str, assumed: list[str], shown: list[str]) -> str:
    """Brackets around every expression keep it from ending the lemma and starting another declaration."""
    clauses = [f"  requires ({e})" for e in assumed] + [f"  ensures ({e})" for e in shown or ["true"]]
    return "\n".join([header, *clauses, "{", "}", ""])


def _of(clauses: tuple[Clause, ...], kind: str) -> list[str]:
    return [clause.text for clause in clauses if clause.kind == kind]


def _formals(parameters: tuple[Parameter, ...], new: bool = False) -> str:
    """`new`: an array may have been allocated by the method."""
    return ", ".join(f"{'new ' * (new and 'array' in p.type)}{p.name}: {p.type}" for p in parameters)


def _heap(method: Method) -> tuple[Parameter, ...]:
    """The arrays among the inputs and outputs.

    Raises:
      ValueError: the method can reach objects that are not arrays, or arrays inside other values.
    """
    if {token.text for token in lex(method.others)} & _MAY_BE_CLASS:
        raise ValueError("the program declares classes, which the lemmas do not cover")
    arrays = tuple(p for p in method.inputs + method.outputs if "array" in p.type)
    for p in arrays:
        inner = _ARRAY.fullmatch(p.type)
        if inner is None or "array" in (inner[1] or ""):
            raise ValueError(f"the lemmas do not cover a parameter of type {p.type}")
    for p in method.inputs + method.outputs:
        if {token.text for token in lex(p.type)} & {"object", "object?", "this"}:
            raise ValueError(f"the lemmas do not cover a parameter of type {p.type}")
    return arrays


def _frame(arrays: tuple[Parameter, ...], clauses: tuple[Clause, ...]) -> list[str]:
    """What the `modifies` clauses leave unchanged, as postconditions. Arrays of one type may be one array.

    Raises:
      ValueError: a `modifies` clause lists something else than input arrays.
    """
    types = {p.name: p.type for p in arrays}
    written = {token.text for text in _of(clauses, "modifies") for token in lex(text)}
    written -= {",", "{", "}"}
    if written - types.keys():
        raise ValueError(f"the lemmas do not cover `modifies {min(written - types.keys())}`")
    frame = []
    for name, kind in types.items():
        if name not in written:
            others = [f"{name} != {w}" for w in sorted(written) if types[w] == kind]
            frame.append(" && ".join(others) + " ==> " * bool(others) + f"unchanged({name})")
    return frame
