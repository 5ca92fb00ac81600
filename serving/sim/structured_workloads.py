"""Workloads whose requests depend on each other or share prefixes: trees of thought, chats, document
questions, judges.

Lengths are in tokens. `gap_s` is the time between the arrivals of two problems, sessions or requests.
"""

import random
from collections.abc import Iterator

from serving.request import ClientId
from serving.sim.synthetic_tokens import SyntheticTokens, TokenSegment
from serving.sim.workload import SimulatedRequest


def tree_of_thought(
    client: ClientId,
    *,
    problems: int,
    branch: int,
    depth: int,
    prompt_tok: int,
    thought_tok: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Each problem is a tree: the children of a node start when it ends and extend its prompt and output."""
    rng = random.Random(f"{seed}/{client}")

    def grow(
        id: str, context: list[TokenSegment], level: int, after: str | None, at_s: float
    ) -> Iterator[SimulatedRequest]:
        output = _around(thought_tok, rng)
        yield _request(client, id, at_s, context, output, after)
        if level < depth:
            deeper = [*context, (f"{id}/out", output)]
            for child in range(branch):
                yield from grow(f"{id}.{child}", [*deeper, (f"{id}.{child}/ask", 12)], level + 1, id, 0.0)

    for i in range(problems):
        id = f"{client}-{i}"
        yield from grow(id, [(f"{client}/system", prompt_tok), (f"{id}/ask", 40)], 1, None, i * gap_s)


def chat(
    client: ClientId,
    *,
    sessions: int,
    turns: int,
    system_tok: int,
    question_tok: int,
    answer_tok: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Sessions of several turns; the prompt of a turn holds the whole conversation before it."""
    rng = random.Random(f"{seed}/{client}")
    for s in range(sessions):
        context: list[TokenSegment] = [(f"{client}/system", system_tok)]
        before = None
        for t in range(turns):
            id = f"{client}-{s}.{t}"
            context = [*context, (f"{id}/ask", _around(question_tok, rng))]
            output = _around(answer_tok, rng)
            at_s = rng.uniform(1.0, 5.0) if before else s * gap_s
            yield _request(client, id, at_s, context, output, before)
            context, before = [*context, (f"{id}/out", output)], id


def document_questions(
    client: ClientId,
    *,
    documents: int,
    questions: int,
    document_tok: int,
    question_tok: int,
    answer_tok: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Questions about long documents, in random order."""
    rng = random.Random(f"{seed}/{client}")
    order = [d for d in range(documents) for _ in range(questions)]
    rng.shuffle(order)
    for i, document in enumerate(order):
        id = f"{client}-{i}"
        context: list[TokenSegment] = [(f"{client}/doc{document}", document_tok), (f"{id}/ask", question_tok)]
        yield _request(client, id, i * gap_s, context, _around(answer_tok, rng), None)


def judge(
    client: ClientId,
    *,
    requests: int,
    rubric: str,
    rubric_tok: int,
    case_tok: int,
    answer_tok: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Many short cases under one long rubric, which other clients may share."""
    rng = random.Random(f"{seed}/{client}")
    for i in range(requests):
        id = f"{client}-{i}"
        context: list[TokenSegment] = [(rubric, rubric_tok), (f"{id}/ask", _around(case_tok, rng))]
        yield _request(client, id, i * gap_s, context, _around(answer_tok, rng), None)


def _around(mean_tok: int, rng: random.Random) -> int:
    """A uniform length from half of `mean_tok` to one and a half of it."""
    return rng.randint(mean_tok // 2, mean_tok * 3 // 2)


def _request(
    client: ClientId, id: str, at_s: float, context: list[TokenSegment], output_tok: int, after: str | None
) -> SimulatedRequest:
    # The output is part of the tokens so that the prefix cache keeps it for requests that extend it.
    prompt_tok = sum(n for _, n in context)
    return SimulatedRequest(
        id,
        client,
        at_s,
        SyntheticTokens([*context, (f"{id}/out", output_tok)]),
        prompt_tok,
        output_tok,
        output_tok,
        after=after,
    )
