"""How many parameters a config has, without allocating one.

python -m mixattn.params --config=configs/paper_5b.py
python -m mixattn.params --config=configs/paper_5b.py:ma_offset --json
"""

import json
import math
from collections import Counter
from typing import NamedTuple

from absl import flags
from flax import nnx

from mixattn.hf.tensors import abstract, dotted
from mixattn.spec import ModelConfig, itemsize
from mixattn.tools import cli


class ParameterCounts(NamedTuple):
    """Attributes:
    total: parameters that exist.
    active: parameters one token meets; of each mixture's experts, the k it is sent to.
    by_part: total by part of the model.
    """

    total: int
    active: int
    by_part: dict[str, int]


def count(config: ModelConfig) -> ParameterCounts:
    """Counts from shapes alone."""
    by_part: Counter[str] = Counter()
    idle = 0
    for path, param in nnx.to_flat_state(abstract(config)[1]):
        shape = param.get_value().shape
        size = math.prod(shape)
        expert = path[0] == "blocks" and config.has_experts(int(str(path[1]))) and path[2:] in EXPERTS
        by_part[_part(path, expert)] += size
        if expert:
            idle += size * (config.n_experts - config.experts_per_token) // config.n_experts
    total = sum(by_part.values())
    return ParameterCounts(total, total - idle, dict(by_part))


EXPERTS = {("ffn", "gate"), ("ffn", "up"), ("ffn", "down")}


def _part(path: tuple, expert: bool) -> str:
    if expert:
        return "experts"
    name = path[2] if path[0] == "blocks" else path[0]
    return "norms" if "norm" in dotted(path) else {"ffn": "feed-forward and routers"}.get(name, name)


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
    flags.DEFINE_bool("json", False, "Print JSON instead.")
    cli.run(main)
