"""Workloads whose requests depend on each other or share beginnings: trees of thought, chats, documents,
judges."""

import random
from collections.abc import Iterator

from serving.request import ClientId
from serving.sim.synthetic_tokens import SyntheticTokens, TokenRun
from serving.sim.workload import SimulatedRequest


def tree_of_thought(
    client: ClientId,
    *,
    problems: int,
    branch: int,
    depth: int,
    prompt: int,
    thought: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Each problem is a tree: a node's children start when it ends, and carry on from its prompt and
    output."""
    rng = random.Random(f"{seed}/{client}")

    def grow(
        id: str, context: list[TokenRun], level: int, after: str | None, at_s: float
    ) -> Iterator[SimulatedRequest]:
        output = rng.randint(thought // 2, thought * 3 // 2)
        yield _job(client, id, at_s, context, output, after)
        if level < depth:
            deeper = [*context, (f"{id}/out", output)]
            for child in range(branch):
                yield from grow(f"{id}.{child}", [*deeper, (f"{id}.{child}/ask", 12)], level + 1, id, 0.0)

    for i in range(problems):
        id = f"{client}-{i}"
        yield from grow(id, [(f"{client}/system", prompt), (f"{id}/ask", 40)], 1, None, i * gap_s)


def chat(
    client: ClientId,
    *,
    sessions: int,
    turns: int,
    system: int,
    info: int,
    answer: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Sessions of several turns; each turn's prompt is all that was said before."""
    rng = random.Random(f"{seed}/{client}")
    for s in range(sessions):
        context: list[TokenRun] = [(f"{client}/system", system)]
        before = None
        for t in range(turns):
            id = f"{client}-{s}.{t}"
            context = [*context, (f"{id}/ask", rng.randint(info // 2, info * 3 // 2))]
            output = rng.randint(answer // 2, answer * 3 // 2)
            at_s = rng.uniform(1.0, 5.0) if before else s * gap_s
            yield _job(client, id, at_s, context, output, before)
            context, before = [*context, (f"{id}/out", output)], id


def document_questions(
    client: ClientId,
    *,
    documents: int,
    questions: int,
    length: int,
    info: int,
    answer: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Questions about long documents, in random order over all documents."""
    rng = random.Random(f"{seed}/{client}")
    order = [d for d in range(documents) for _ in range(questions)]
    rng.shuffle(order)
    for i, document in enumerate(order):
        id = f"{client}-{i}"
        context: list[TokenRun] = [(f"{client}/doc{document}", length), (f"{id}/ask", info)]
        yield _job(client, id, i * gap_s, context, rng.randint(answer // 2, answer * 3 // 2), None)


def judge(
    client: ClientId,
    *,
    requests: int,
    rubric: str,
    length: int,
    info: int,
    answer: int,
    gap_s: float,
    seed: int,
) -> Iterator[SimulatedRequest]:
    """Many short cases under one long rubric, which other clients may use too."""
    rng = random.Random(f"{seed}/{client}")
    for i in range(requests):
        id = f"{client}-{i}"
        context: list[TokenRun] = [(rubric, length), (f"{id}/ask", rng.randint(info // 2, info * 3 // 2))]
        yield _job(client, id, i * gap_s, context, rng.randint(answer // 2, answer * 3 // 2), None)


def _job(
    client: ClientId, id: str, at_s: float, context: list[TokenRun], output: int, after: str | None
) -> SimulatedRequest:
    # The output is part of the tokens so that the prefix cache keeps it for whoever carries on from it.
    prompt = sum(n for _, n in context)
    return SimulatedRequest(
        id,
        client,
        at_s,
        SyntheticTokens([*context, (f"{id}/out", output)]),
        prompt,
        output,
        output,
        after=after,
    )
