"""Variable tracking: a number is given to one variable and passed on; which variables hold it?"""

import itertools
import string
from random import Random

from mixattn.evals.longcontext.example import Count, Example, generator, grown
from mixattn.evals.longcontext.words import FILLER

HOPS = 3  # assignments behind the first
CHAINS = 2  # the one that is asked for, and one more


def make(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """A chain of assignments in noise; `depth` is not used, since its lines are spread over the text."""
    random = generator(seed, "tracking", index)
    names = _names(random, CHAINS * (HOPS + 1))
    chains = [names[i::CHAINS] for i in range(CHAINS)]
    values = [str(random.randint(10_000, 99_999)) for _ in chains]
    lines: list[tuple[float, str]] = []
    for chain, value in zip(chains, values, strict=True):
        places = sorted(random.random() for _ in chain)
        said = [f"VAR {chain[0]} = {value}."]
        said += [f"VAR {name} = VAR {before}." for before, name in itertools.pairwise(chain)]
        lines += zip(places, said, strict=True)
    question = f"\nWhich variables hold the value {values[0]}?\n"
    lead = f"The variables that hold the value {values[0]} are:"
    start = random.randrange(len(FILLER))

    def fill(n: int) -> str:
        sentences = [FILLER[(start + i) % len(FILLER)] for i in range(n)]
        for place, line in sorted(lines, reverse=True):
            sentences.insert(round(place * n), line)
        return "Keep track of the variables in the following text.\n" + " ".join(sentences)

    context = grown(fill, length - count(question + lead), count)
    return Example("tracking", index, length, -1, context, question, lead, tuple(chains[0]), 40)


def _names(random: Random, n: int) -> list[str]:
    names: set[str] = set()
    while len(names) < n:
        names.add("".join(random.choices(string.ascii_uppercase, k=5)))
    return random.sample(sorted(names), n)
