"""Multiple choice in the form of H2O's accuracy figures: examples, a sentence, and endings that are scored.

The sentences are this project's own and short; their documents need no download. As in the paper's tasks the
examples and the sentence are read once and cut to the budget, and each ending is scored on what is left.
"""

import json
from pathlib import Path
from typing import Any

ITEMS = Path(__file__).with_name("choices.jsonl")
EXAMPLES = 6  # the first items; the others are asked
NAME = "own_choices"


def items() -> list[dict[str, Any]]:
    """Sentences, endings, and which ending is right."""
    return [json.loads(line) for line in ITEMS.read_text(encoding="utf-8").splitlines()]


def task(shots: int) -> Any:
    """The task, as the harness takes it.

    Args:
      shots: examples in front of each sentence.

    Raises:
      ValueError: more examples than there are.
    """
    from lm_eval.api.task import ConfigurableTask

    if not 0 <= shots <= EXAMPLES:
        raise ValueError(f"{shots} examples in front of a sentence; there are {EXAMPLES}")
    return ConfigurableTask(
        config={
            "task": NAME,
            "custom_dataset": _splits,
            "test_split": "test",
            "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": " ",
            "fewshot_delimiter": ".\n",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )


def _splits(**_: Any) -> dict[str, Any]:
    import datasets

    return {
        name: datasets.Dataset.from_list(rows)
        for name, rows in (("train", items()[:EXAMPLES]), ("test", items()[EXAMPLES:]))
    }
