"""Counts the parameters of a config without allocating them.

python -m mixattn.params --config=configs/paper_5b.py
python -m mixattn.params --config=configs/paper_5b.py:ma_offset --json
"""

import json
import math
from collections import Counter
from typing import Any, NamedTuple

from absl import flags
from flax import nnx

from mixattn.hf.tensors import abstract_model, dotted_path
from mixattn.spec import ModelConfig, itemsize
from mixattn.tools import cli

_EXPERTS = {("ffn", "gate"), ("ffn", "up"), ("ffn", "down")}


class ParameterCounts(NamedTuple):
    """Attributes:
    total: all parameters.
    active: parameters that one token uses: of each mixture layer's experts, k.
    by_part: the total by part of the model.
    """

    total: int
    active: int
    by_part: dict[str, int]


def count(config: ModelConfig) -> ParameterCounts:
    """Counts parameters from their shapes."""
    by_part: Counter[str] = Counter()
    inactive = 0
    for path, param in nnx.to_flat_state(abstract_model(config)[1]):
        shape = param.get_value().shape
        size = math.prod(shape)
        is_expert = path[0] == "blocks" and config.has_experts(int(str(path[1]))) and path[2:] in _EXPERTS
        by_part[_part(path, is_expert)] += size
        if is_expert:
            inactive += size * (config.n_experts - config.experts_per_token) // config.n_experts
    total = sum(by_part.values())
    return ParameterCounts(total, total - inactive, dict(by_part))


def _part(path: tuple[Any, ...], is_expert: bool) -> str:
    """The row of the table that a parameter counts in."""
    if is_expert:
        return "experts"
    name = path[2] if path[0] == "blocks" else path[0]
    return "norms" if "norm" in dotted_path(path) else {"ffn": "feed-forward and routers"}.get(name, name)


def main() -> None:
    config = cli.model_config()
    counts = count(config)
    if flags.FLAGS.json:
        print(json.dumps(counts._asdict(), indent=2))
        return
    gib = counts.total * itemsize(config.dtype) / 2**30
    print(f"{counts.total:,} parameters, {counts.active:,} active, {gib:.1f} GiB in {config.dtype}")
    for part, size in sorted(counts.by_part.items(), key=lambda item: -item[1]):
        print(f"  {part:26} {size:>16,}")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
    cli.run(main)
