"""H2O's evaluation on a real small model: budgets, ablations, streaming, both kinds of questions.

    make model
    python -m train.experiments.eviction --config=configs/eviction.py --workdir=runs/eviction

Sections: `budgets` (nats of 104 texts, every scorer at 10, 20 and 60 %; 4 % is fewer keys than SnapKV
observes), `ablations` (sum against mean, compete against always, cutting once against in every
step), `stream` (rolling positions beyond the trained length), `aware` and
`agnostic` (tasks of RULER's kinds at budgets of a quarter to three quarters). Hours on one core; `:fast` is a
few texts of each and only shows that it works.
"""

from typing import Any

from mixattn.evals.longcontext.policies import grid
from mixattn.evals.longcontext.suite import SuiteGrid
from train.experiments.eviction import EvictionExperiment

ALL = ("h2o", "h2o_mean", "snapkv", "tova", "streaming", "knorm", "random", "recent")
ABLATIONS = ("h2o", "h2o+always", "h2o+prompt", "h2o+one_recent", "h2o_mean", "random")
RULER = ("needle", "needle_keys", "tracking", "common_words", "documents")


def get_config(variant: str = "") -> EvictionExperiment:
    """Returns the experiment; "fast" is small.

    Raises:
      ValueError: there is no such variant.
    """
    if variant not in ("", "fast"):
        raise ValueError(f"configs/eviction.py has no variant {variant!r}; it has the whole and :fast")
    fast = variant == "fast"
    return EvictionExperiment(
        sections=_sections(fast), scored=64, name="eviction_fast" if fast else "eviction"
    )


def _sections(fast: bool) -> dict[str, SuiteGrid]:
    few = ["0.5"] if fast else []

    def section(
        tasks: tuple[str, ...], length: int, scorers: tuple[str, ...], budgets: list[str], n: int
    ) -> Any:
        return {
            "tasks": tasks,
            "lengths": (192 if fast else length,),
            "depths": (0.1, 0.5, 0.9),
            "policies": tuple(grid(scorers, few or budgets, sinks=4, recent=0.5)),
            "samples": 2 if fast else n,
        }

    quarters = ["0.25", "0.5", "0.75"]
    ruler = section(RULER[: 1 if fast else None], 1024, ("h2o", "snapkv", "tova", "streaming"), quarters, 10)
    return {
        "budgets": SuiteGrid(**section(("text",), 448, ALL, ["0.1", "0.2", "0.6"], 104)),
        "ablations": SuiteGrid(**section(("text",), 448, ABLATIONS, ["0.1", "0.2"], 104)),
        "stream": SuiteGrid(**section(("stream",), 4096, ("h2o", "streaming"), ["256", "512"], 4)),
        "aware": SuiteGrid(**ruler, mode="aware"),
        "agnostic": SuiteGrid(**ruler, mode="agnostic"),
    }
