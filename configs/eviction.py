"""H2O's evaluation on a real small model, beside the table of `python -m mixattn.evals longcontext`.

    make model
    python -m train.experiments.eviction --config=configs/eviction.py --workdir=runs/eviction

Sections: `budgets` (nats of 104 texts at 4 and 60 %, which results/longcontext_smollm2.csv does not have),
`ablations` (the same texts at 20 %: FlexGen's promotion, and heavy keys with one recent key), `stream` (16
texts read token by token with rolling positions, caches of 64 and 128 keys). About 15 minutes on one core;
`:fast` is a few texts and only shows that it works. Questions are a matter of
`python -m serving.evals longcontext` and, cut before they are read, of
`python -m mixattn.evals longcontext --mode=agnostic`.
"""

from mixattn.evals.longcontext.policies import grid
from mixattn.evals.longcontext.suite import SuiteGrid
from train.experiments.eviction import EvictionExperiment

SCORERS = ("h2o", "streaming", "random")
ABLATIONS = ("h2o", "h2o+always", "h2o+one_recent")


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
    half = ["0.5"] if fast else []

    def section(task: str, length: int, n: int, scorers: tuple[str, ...], budgets: list[str]) -> SuiteGrid:
        policies = tuple(grid(scorers, budgets, sinks=4, recent=0.5))
        return SuiteGrid((task,), (192 if fast else length,), (), policies, 2 if fast else n)

    return {
        "budgets": section("text", 448, 104, SCORERS, half or ["0.04", "0.6"]),
        "ablations": section("text", 448, 104, ABLATIONS, half or ["0.2"]),
        "stream": section("stream", 512, 16, ("h2o", "streaming"), ["64", "128"]),
    }
