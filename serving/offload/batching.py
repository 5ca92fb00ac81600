"""Distributes requests over micro-batches so that each holds about as many prompt tokens, without padding.

Source: MoE-Lightning (arXiv 2411.11217), algorithm 2. As in its artifact, micro-batches that are not full are
used too; as in its text, requests that do not fit go back to the queue.
"""

from collections.abc import Sequence
from typing import NamedTuple


class MicroBatches(NamedTuple):
    """Attributes:
    parts: indices of requests, one list per micro-batch; none is empty.
    waiting: indices that did not fit, in arrival order, for the next pass.
    """

    parts: tuple[tuple[int, ...], ...]
    waiting: tuple[int, ...]


def balance(
    prompt_tok: Sequence[int],
    *,
    micro_batches: int,
    micro_batch: int,
    generate_tok: int,
    kv_tok: int,
) -> MicroBatches:
    """Assigns the longest prompts first, each to the micro-batch with the fewest prompt tokens so far.

    Args:
      prompt_tok: prompt lengths.
      micro_batches, micro_batch: their number, and the most requests that one holds.
      generate_tok: tokens that each request may generate.
      kv_tok: K/V tokens that a micro-batch may hold.

    Raises:
      ValueError: a size below 1, or a request that no micro-batch could ever hold.
    """
    for name, value in (("micro_batches", micro_batches), ("micro_batch", micro_batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    for index, length in enumerate(prompt_tok):
        if length + generate_tok > kv_tok:
            raise ValueError(
                f"request {index} needs {length} + {generate_tok} tokens; a micro-batch holds {kv_tok}"
            )
    parts: list[list[int]] = [[] for _ in range(micro_batches)]
    sums = [0] * micro_batches
    waiting: list[int] = []
    for index in sorted(range(len(prompt_tok)), key=lambda i: -prompt_tok[i]):
        open_parts = [p for p in range(micro_batches) if len(parts[p]) < micro_batch]
        part = min(open_parts, key=lambda p: sums[p], default=None)
        if part is None:
            waiting.append(index)
            continue
        total = sums[part] + prompt_tok[index] + (1 + len(parts[part])) * generate_tok
        if total > kv_tok:
            waiting.append(index)
            continue
        parts[part].append(index)
        sums[part] += prompt_tok[index]
    return MicroBatches(tuple(tuple(part) for part in parts if part), tuple(sorted(waiting)))
