"""The tasks by name. A task is a function (seed, index, length, depth, count) -> Example."""

from collections.abc import Callable

from mixattn.evals.longcontext.example import Count, Example
from mixattn.evals.longcontext.tasks import counting, documents, needles, tracking

type MakeExample = Callable[[int, int, int, float, Count], Example]
TASKS: dict[str, MakeExample] = {
    "needle": needles.single,
    "needle_keys": needles.many_keys,
    "needle_values": needles.many_values,
    "needle_queries": needles.many_queries,
    "tracking": tracking.make,
    "common_words": counting.common,
    "frequent_words": counting.frequent,
    "documents": documents.make,
}
AT_A_DEPTH = ("needle", "needle_keys", "documents")  # the others spread their answers over the context

__all__ = ["AT_A_DEPTH", "TASKS", "MakeExample"]
