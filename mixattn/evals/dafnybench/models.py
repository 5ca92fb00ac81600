"""Who answers: scripted models for tests and bounds, a language model behind a server, and the annotator.

A model is a function from a task and the attempts so far to the text of a reply.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixattn.evals.dafny.reader import read
from mixattn.evals.dafny.strip import removable, without
from mixattn.evals.dafnybench.checking import Task
from mixattn.evals.llm import CallOptions, OpenAI, RetryPolicy, call_with_retries


@dataclass(frozen=True, slots=True)
class Attempt:
    """One reply, the program taken from it, and what was said about it; `feedback` is empty if accepted."""

    reply: str
    solution: str
    accepted: bool
    accepted_official: bool
    verdict: str
    feedback: str


type Model = Callable[[Task, Sequence[Attempt]], str]


def identity(task: Task, _: Sequence[Attempt]) -> str:
    """Returns the program without hints."""
    return task.stripped


def oracle(task: Task, _: Sequence[Attempt]) -> str:
    """Returns the author's program."""
    return task.original


def oracle_at(k: int) -> Model:
    """Fails k - 1 times, then returns the author's program."""
    return lambda task, past: task.original if len(past) + 1 >= k else task.stripped


def noisy(p: float, seed: int) -> Model:
    """Returns the author's program, each hint lost with probability `p`, drawn anew for every attempt."""

    def answer(task: Task, past: Sequence[Attempt]) -> str:
        dice = random.Random(f"{seed} {task.name} {len(past)}")
        reading, program = read(task.original), task.original
        for span in reversed(removable(reading)):
            if dice.random() < p:
                first, last = reading.tokens[span.start], reading.tokens[span.end - 1]
                program = without(program, first.start, last.end)
        return program

    return answer


def _assume_false(program: str, spelling: str) -> str:
    """The statement in front of every closing brace of a body that ends a line: enough for one to count."""
    return program.replace("\n}", f"\n  {spelling}\n}}")


CHEATERS: dict[str, Callable[[Task], str]] = {
    "assume": lambda task: _assume_false(task.stripped, "assume  false;"),
    "assume-by": lambda task: _assume_false(task.stripped, "assert false by { assume 1 == 0; }"),
    "axiom": lambda task: _assume_false(task.stripped, "Trust();") + "\nlemma Trust() ensures false\n",
    "verify-off": lambda task: task.stripped.replace("method ", "method {: verify /**/ false} "),
    "no-loop": lambda task: task.stripped.replace("while ", "while false && "),
    "free": lambda task: task.stripped.replace("  ensures ", "  free ensures "),
    "weaken": lambda task: task.stripped.replace("  ensures ", "  ensures true || "),
    "directive": lambda task: f"#if NEVER\n{task.stripped}\n#endif\nlemma Nothing() ensures true {{ }}\n",
    "replace": lambda task: "method Something() returns (x: int) ensures x == 1 { x := 1; }\n",
    "endless": lambda task: task.stripped.replace("\n{", "\n  decreases *\n{").replace(
        "while ", "while true decreases * { } while "
    ),
}


def cheater(kind: str) -> Model:
    """Answers every task with one kind of cheat."""
    return lambda task, _: CHEATERS[kind](task)


SYSTEM = (
    "You write Dafny. You get a program whose signatures, specifications and code are final, but whose proof"
    " hints are missing. Return the whole program with the hints that make it verify: loop invariants,"
    " decreases clauses, assertions, calculations, helper lemmas. Change nothing that is given. Do not use"
    " assume, and do not switch verification off. Answer with the program only, in a ```dafny block."
)


def conversation(task: Task, past: Sequence[Attempt]) -> list[dict[str, str]]:
    """The task, every answer so far, and what verifier and checker said to it."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"The program:\n```dafny\n{task.stripped}\n```"},
    ]
    for attempt in past:
        said = f"The verifier and the checker said:\n{attempt.feedback}\nTry again, with all of the above."
        messages.append({"role": "assistant", "content": attempt.reply})
        messages.append({"role": "user", "content": said})
    return messages


def served(base_url: str, name: str, *, max_tokens: int = 4096, temperature: float = 0.3) -> Model:
    """A language model behind an OpenAI-compatible server."""

    async def ask(messages: list[dict[str, str]], seed: int) -> str:
        async with OpenAI(base_url, name, chat=True) as model:
            options = CallOptions(
                max_tokens=max_tokens, temperature=temperature, seed=seed, client="dafnybench"
            )
            found, _ = await call_with_retries(
                lambda: model.complete_messages(messages, **options), RetryPolicy()
            )
            return found.text

    return lambda task, past: asyncio.run(ask(conversation(task, past), len(past)))


def program_in(reply: str) -> str:
    """The program in a reply: between answer tags, in the first fenced block, or all of it."""
    for opening, closing in (
        ("<answer>", "</answer>"),
        ("```dafny", "```"),
        ("```Dafny", "```"),
        ("```", "```"),
    ):
        start = reply.find(opening)
        if start >= 0:
            inside = reply[start + len(opening) :]
            end = inside.find(closing)
            return inside if end < 0 else inside[:end]
    return reply
