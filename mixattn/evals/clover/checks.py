"""The six checks of Clover, and the loop of tries and turns around them."""

import asyncio
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mixattn.evals.clover import prompts
from mixattn.evals.clover.annotations import Comparison, compare_annotations
from mixattn.evals.clover.method import Method, program, read_method
from mixattn.evals.clover.outputs import RunProgram, compare_outputs
from mixattn.evals.clover.refusals import unproved
from mixattn.evals.clover.triple import EDGES, Edge, Triple
from mixattn.evals.dafny.protocol import Verify, located, settled
from mixattn.evals.llm import LanguageModel

type Status = Literal["pass", "fail", "cannot say"]
TURNS = 3  # answers of one try: the verifier's messages come back twice
MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Tools:
    """What the checks need. Without a model five of the six cannot say anything.

    Args:
      blocking: `verify` and `run` take their time and are called in threads; False for scripted ones.
    """

    verify: Verify
    run: RunProgram
    model: LanguageModel | None = None
    temperature: float = 0.0
    blocking: bool = True

    async def call[T](self, function: Callable[..., T], *args: Any) -> T:
        """Calls a function that verifies or runs programs."""
        return await asyncio.to_thread(function, *args) if self.blocking else function(*args)


@dataclass(frozen=True, slots=True)
class EdgeResult:
    """The outcome of one check. `trials` were used; `reason` says why the last one did not pass."""

    status: Status
    trials: int = 1
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CloverReport:
    """The checks that were made. `accepted`: all of them passed."""

    edges: dict[Edge, EdgeResult]

    @property
    def accepted(self) -> bool:
        return bool(self.edges) and all(result.status == "pass" for result in self.edges.values())


async def check(
    triple: Triple,
    tools: Tools,
    *,
    k: int = 1,
    seed: int = 0,
    edges: Sequence[Edge] = EDGES,
    early_quit: bool = False,
) -> CloverReport:
    """Checks a triple edge by edge; an edge passes if one of `k` tries does.

    A try's randomness depends on seed, program, edge and its number only, so that more tries accept more.

    Raises:
      CallFailed: the model gave no answer.
      VerifierGone: the verifier disappeared.
    """
    found: dict[Edge, EdgeResult] = {}
    for edge in edges:
        found[edge] = await _edge(edge, triple, tools, k, seed)
        if early_quit and found[edge].status != "pass":
            break
    return CloverReport(found)


async def _edge(edge: Edge, triple: Triple, tools: Tools, k: int, seed: int) -> EdgeResult:
    if edge == "anno-sound":
        return await tools.call(anno_sound, triple, tools.verify)
    if tools.model is None:
        return EdgeResult("cannot say", 0, "there is no model to ask")
    result = EdgeResult("fail", 0)
    for trial in range(k):
        number = _number(seed, triple.name, triple.kind, edge, trial)
        comparison = await _Try(triple, tools, tools.model, number).edge(edge)
        if comparison.likeness == "equal":
            return EdgeResult("pass", trial + 1)
        status: Status = "cannot say" if comparison.likeness == "cannot say" else "fail"
        result = EdgeResult(status, trial + 1, comparison.reason)
    return result


def anno_sound(triple: Triple, verify: Verify) -> EdgeResult:
    """Code to annotation: the verifier, and nothing that a proof may not hold."""
    text = triple.program()
    refused = unproved(text) or ("" if triple.method.body else "the method has no body")
    if refused:
        return EdgeResult("fail", 1, refused)
    found = settled(text, verify)
    if found.verdict == "verified":
        return EdgeResult("pass")
    unknown = found.verdict in ("timeout", "crash", "empty")
    return EdgeResult("cannot say" if unknown else "fail", 1, located(found))


def _number(*parts: object) -> int:
    """A seed below 2^31 from anything."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1


@dataclass(frozen=True, slots=True)
class _Try:
    """One try of one edge: a component is written anew and compared with the triple's."""

    triple: Triple
    tools: Tools
    model: LanguageModel
    seed: int

    async def edge(self, edge: Edge) -> Comparison:
        method, docstring = self.triple.method, self.triple.docstring
        match edge:
            case "anno-complete":
                prompt = prompts.from_annotation("anno-complete", method)
                return await self._in_turns(prompt, self._complete)
            case "doc2code":
                return await self._in_turns(
                    prompts.from_docstring("doc2code", docstring, method), self._outputs
                )
            case "doc2anno":
                prompt = prompts.from_docstring("doc2anno", docstring, method)
                return await self._in_turns(prompt, self._annotation)
            case "anno2doc":
                return await self._docstring(prompts.from_annotation("anno2doc", method))
            case _:
                return await self._docstring(prompts.from_code(method))

    async def _in_turns(self, prompt: str, judge: Callable[[str], Comparison]) -> Comparison:
        """Up to TURNS answers; a malformed one is returned with what was wrong."""
        asked = prompt
        for _ in range(TURNS):
            answer = await self._ask(asked)
            found = await self.tools.call(judge, answer)
            if found.likeness != "malformed":
                break
            asked = prompts.again(prompt, answer, found.reason)
        return found

    async def _ask(self, prompt: str) -> str:
        completion = await self.model.complete(
            prompt, max_tokens=MAX_TOKENS, temperature=self.tools.temperature, seed=self.seed
        )
        return completion.text

    async def _docstring(self, prompt: str) -> Comparison:
        """Writes a docstring and lets the model, in a call of its own, compare it with the triple's."""
        written = (await self._ask(prompt)).strip()
        if not written:
            return Comparison("different", "the model wrote no docstring")
        answer = await self._ask(prompts.judge(self.triple.docstring, written))
        verdict = prompts.says_yes(answer)
        if verdict is None:
            return Comparison("different", f"the judge said neither YES nor NO: {answer[:80]!r}")
        return Comparison("equal" if verdict else "different", "" if verdict else f"judge: {answer[:200]}")

    def _complete(self, answer: str) -> Comparison:
        """Code written from the annotation must verify against it, and print what the given code prints."""
        written = self._read(answer, body=True)
        if isinstance(written, Comparison):
            return written
        m = self.triple.method
        text = program(m.signature, m.clauses, written.code, written.others)
        refused = unproved(text)
        if refused:
            return Comparison("malformed", refused)
        found = self.tools.verify(text)
        if found.verdict != "verified":
            return Comparison("malformed", located(found))
        return compare_outputs(self.tools.run, m, written, self.triple.tests)

    def _outputs(self, answer: str) -> Comparison:
        written = self._read(answer, body=True)
        if isinstance(written, Comparison):
            return written
        return compare_outputs(self.tools.run, self.triple.method, written, self.triple.tests)

    def _annotation(self, answer: str) -> Comparison:
        written = self._read(answer, body=False)
        if isinstance(written, Comparison):
            return written
        return compare_annotations(self.tools.verify, self.triple.method, written.clauses)

    def _read(self, answer: str, *, body: bool) -> Method | Comparison:
        """The method in an answer, or what is wrong with it; with the triple's other declarations."""
        given = self.triple.method
        text = prompts.block(answer)
        if body and text.startswith("{"):
            text = f"{given.signature}\n{text}"
        try:
            written = read_method(text, given.name)
        except ValueError as why:
            return Comparison("malformed", str(why))
        if not written.same_signature(given):
            return Comparison("malformed", f"the signature must stay {given.signature!r}")
        if body and not written.body:
            return Comparison("malformed", "the method has no body")
        return replace(written, others=given.others)


def accepted_by(edges: dict[Edge, Status], only: Collection[Edge]) -> bool:
    """Whether a triple with these outcomes is accepted when only some of the edges count."""
    return all(edges[edge] == "pass" for edge in only)
