"""Needles: numbers in a text that says nothing else of them.

single: one. many_keys: a needle in every few sentences, one is asked for. many_values: four numbers of one
name. many_queries: four of eight names are asked for.
"""

from collections.abc import Sequence
from random import Random

from mixattn.evals.longcontext.example import Count, Example, generator, grown
from mixattn.evals.longcontext.words import ADJECTIVES, FILLER, NOUNS

OPENING = "Some special magic numbers are hidden in the following text. Remember them.\n"
EVERY = 3  # sentences between the distractors of many_keys


def single(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """One needle at `depth`."""
    random = generator(seed, "needle", index)
    name, number = _names(random, 1)[0], _number(random)
    needles = [(depth, _needle(name, number))]
    return _example("needle", index, length, depth, [name], [number], needles, random, count)


def many_keys(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """One needle at `depth` that is asked for, among others of the same form."""
    random = generator(seed, "needle_keys", index)
    names = _names(random, len(NOUNS) * 2)
    number = _number(random)
    others = [_needle(name, _number(random)) for name in names[1:]]
    needles = [(depth, _needle(names[0], number))]
    return _example(
        "needle_keys", index, length, depth, names[:1], [number], needles, random, count, distractors=others
    )


def many_values(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """Four needles of one name, spread over the text; `depth` is not used."""
    random = generator(seed, "needle_values", index)
    name, numbers = _names(random, 1)[0], [_number(random) for _ in range(4)]
    needles = [((i + random.random()) / 4, _needle(name, number)) for i, number in enumerate(numbers)]
    return _example("needle_values", index, length, -1, [name], numbers, needles, random, count)


def many_queries(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """Eight needles, of which four are asked for; `depth` is not used."""
    random = generator(seed, "needle_queries", index)
    names, numbers = _names(random, 8), [_number(random) for _ in range(8)]
    pairs = zip(names, numbers, strict=True)
    needles = [((i + random.random()) / 8, _needle(*pair)) for i, pair in enumerate(pairs)]
    asked = sorted(random.sample(range(8), 4))
    return _example(
        "needle_queries",
        index,
        length,
        -1,
        [names[i] for i in asked],
        [numbers[i] for i in asked],
        needles,
        random,
        count,
    )


def _needle(name: str, number: str) -> str:
    return f"One of the special magic numbers for {name} is: {number}."


def _names(random: Random, n: int) -> list[str]:
    names = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]
    return random.sample(names, n)


def _number(random: Random) -> str:
    return str(random.randint(1_000_000, 9_999_999))


def _example(
    task: str,
    index: int,
    length: int,
    depth: float,
    names: Sequence[str],
    numbers: Sequence[str],
    needles: Sequence[tuple[float, str]],
    random: Random,
    count: Count,
    distractors: Sequence[str] = (),
) -> Example:
    many = len(numbers) > 1
    asked = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
    what = "are all the special magic numbers" if many else "is the special magic number"
    question = f"\nWhat {what} for {asked} mentioned in the text?\n"
    lead = (
        f"The special magic number{'s' * many} for {asked} mentioned in the text {'are' if many else 'is'}:"
    )
    start = random.randrange(len(FILLER))

    def fill(n: int) -> str:
        sentences = [FILLER[(start + i) % len(FILLER)] for i in range(n)]
        if distractors:
            for i in range(0, n, EVERY):
                sentences[i] = distractors[i // EVERY % len(distractors)]
        for place, needle in sorted(needles, reverse=True):
            sentences.insert(round(place * len(sentences)), needle)
        return OPENING + " ".join(sentences)

    context = grown(fill, length - count(question + lead), count)
    new_tokens = 16 * len(numbers)
    return Example(task, index, length, depth, context, question, lead, tuple(numbers), new_tokens)
