"""Counted words: which occur most often in a list?

common: five words occur six times as often as the rest. frequent: made-up words whose counts fall by Zipf's
law; the three most frequent are asked for. The answer lies everywhere, so that no few keys hold it.
"""

from random import Random

from mixattn.evals.longcontext.example import Count, Example, generator, grown
from mixattn.evals.longcontext.words import ADJECTIVES, NOUNS

COMMON, RATIO = 5, 6
FREQUENT, ZIPF = 3, 2.0
SYLLABLES = ("ba", "du", "fe", "go", "ki", "la", "mo", "nu", "pe", "ri", "so", "tu", "va", "wi", "xo", "ze")


def common(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """Five common words among rare ones; `depth` is not used."""
    random = generator(seed, "common_words", index)
    words = random.sample((*NOUNS, *ADJECTIVES), len(NOUNS) + len(ADJECTIVES))
    often, rare = words[:COMMON], words[COMMON:]

    def fill(n: int) -> str:
        """`n` rare words, once each in turn, and every common one `RATIO` times as often as a rare one."""
        times = max(1, -(-n // len(rare)))
        bag = [rare[i % len(rare)] for i in range(n)] + often * (RATIO * times)
        Random(index).shuffle(bag)
        return "Below is a numbered list of words. Some occur often. Memorize those.\n" + " ".join(
            f"{i}. {word}" for i, word in enumerate(bag, 1)
        )

    question = f"\nWhat are the {COMMON} most common words in the list?\n"
    lead = f"The {COMMON} most common words are:"
    context = grown(fill, length - count(question + lead), count)
    return Example("common_words", index, length, -1, context, question, lead, tuple(often), 60)


def frequent(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """Made-up words by Zipf's law; `depth` is not used."""
    random = generator(seed, "frequent_words", index)
    words: list[str] = []
    while len(words) < 60:
        word = "".join(random.choices(SYLLABLES, k=3))
        words += [word] if word not in words else []
    weights = [rank**-ZIPF for rank in range(1, len(words) + 1)]

    def fill(n: int) -> str:
        # Every word has its expected count, so that the order of the first does not depend on luck.
        bag = [
            word for word, w in zip(words, weights, strict=True) for _ in range(round(n * w / sum(weights)))
        ]
        bag += [word for rank, word in enumerate(words[:FREQUENT]) for _ in range(FREQUENT + 1 - rank)]
        Random(index).shuffle(bag)
        return "Read the following coded text and keep track of how often each word occurs.\n" + " ".join(bag)

    question = f"\nWhat are the {FREQUENT} most frequently occurring words in the coded text?\n"
    lead = f"The {FREQUENT} most frequently occurring words are:"
    context = grown(fill, length - count(question + lead), count)
    return Example("frequent_words", index, length, -1, context, question, lead, tuple(words[:FREQUENT]), 32)
