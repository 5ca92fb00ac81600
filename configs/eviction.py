"""H2O's evaluation on a real small model, beside the table of `python -m mixattn.evals longcontext`.

    make model
    python -m train.experiments.eviction --config=configs/eviction.py --workdir=runs/eviction

Sections: `text` (nats of 104 texts: the budgets of 4 and 60 % that results/longcontext_smollm2.csv does not
have; and what FlexGen's promotion, a single cut, and heavy keys with one recent key change), `stream` (16
texts read token by token with rolling positions, caches of 64 and 128 keys). About 15 minutes on one core;
`:fast` is a few texts and only shows that it works. Questions are a matter of
`python -m serving.evals longcontext` and, cut before they are read, of
`python -m mixattn.evals longcontext --mode=agnostic`.
"""

from mixattn.evals.longcontext.policies import KeepPolicy, grid
from mixattn.evals.longcontext.suite import SuiteGrid
from train.experiments.eviction import EvictionExperiment

SCORERS = ("h2o", "streaming", "random")
ABLATIONS = ("h2o", "h2o+always", "h2o+prompt", "h2o+one_recent")


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
    if fast:
        text, stream = _policies((("h2o", "h2o+always"), ["0.5"])), _policies((("h2o",), ["64"]))
    else:
        text = _policies((SCORERS, ["0.04", "0.6"]), (ABLATIONS, ["0.1", "0.2"]))
        stream = _policies((("h2o", "streaming"), ["64", "128"]))
    return {
        "text": SuiteGrid(("text",), (192 if fast else 448,), (), text, 2 if fast else 104),
        "stream": SuiteGrid(("stream",), (192 if fast else 512,), (), stream, 2 if fast else 16, batch=16),
    }


def _policies(*parts: tuple[tuple[str, ...], list[str]]) -> tuple[KeepPolicy, ...]:
    """The full cache once, and every scorer of a part with every budget of it."""
    every = (policy for scorers, budgets in parts for policy in grid(scorers, budgets, sinks=4, recent=0.5))
    return tuple(dict.fromkeys(every))
