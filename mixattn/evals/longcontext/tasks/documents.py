"""Questions on documents: short made-up reports, of which one holds the answer, at a depth."""

from random import Random

from mixattn.evals.longcontext.example import Count, Example, generator, grown
from mixattn.evals.longcontext.words import ADJECTIVES, NOUNS, PEOPLE, TOWNS


def make(seed: int, index: int, length: int, depth: float, count: Count) -> Example:
    """Who opened the museum of one town? Every document tells it of another museum."""
    random = generator(seed, "documents", index)
    subjects = random.sample([(town, noun) for town in TOWNS for noun in NOUNS], 400)
    reports = [_report(random, town, noun) for town, noun in subjects]
    (town, noun), (text, person) = subjects[0], reports[0]

    def fill(n: int) -> str:
        others = [reports[1 + i % (len(reports) - 1)][0] for i in range(n)]
        others.insert(round(depth * n), text)
        return "Read the following documents.\n" + "\n".join(
            f"Document {i}: {other}" for i, other in enumerate(others, 1)
        )

    question = f"\nQuestion: Who opened the {noun} museum in {town}?\n"
    lead = f"Answer: The {noun} museum in {town} was opened by"
    context = grown(fill, length - count(question + lead), count)
    return Example("documents", index, length, depth, context, question, lead, (person,), 12)


def _report(random: Random, town: str, noun: str) -> tuple[str, str]:
    """The text, and who opened the museum."""
    person, architect = random.sample(PEOPLE, 2)
    adjective, year = random.choice(ADJECTIVES), random.randint(1850, 1990)
    text = (
        f"The {noun} museum in {town} stands in a {adjective} house. It was built in {year} after plans of "
        f"{architect} and opened by {person}. Some {random.randint(2, 90)} thousand people see it every year."
    )
    return text, person
