"""PyTorch training a model of the same shape, in its own process, driven by `train.bench`.

The other side is `tests/parity/torch_train.py`: a plain Llama and transformers' own, each eager and through
torch.compile, with the fused AdamW.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mixattn import ModelConfig, params
from mixattn.tools.baseline_process import QueryFn, peer
from train.experiment import TrainingExperiment

type Side = Callable[[int], float]  # steps -> seconds per step
_SCRIPT = Path(__file__).parent.parent / "tests" / "parity" / "torch_train.py"
_SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size")


@contextlib.contextmanager
def sides(python: str, experiment: TrainingExperiment) -> Iterator[tuple[dict[str, Side], dict[str, Any]]]:
    """Yields the compiled training functions by name, and facts for the result's header.

    Args:
      python: an interpreter that has torch and transformers.

    Raises:
      ValueError: the experiment is not a plain Llama under AdamW, or the other process ends or has another
        number of parameters.
    """
    check(experiment)
    stage, rule = experiment.train.stages[0], experiment.train.optimizer
    shape = {name: getattr(experiment.model, name) for name in _SHAPE} | {"length": stage.seq_len}
    ours = params.count(experiment.model).total
    fields = {name: getattr(rule, name) for name in ("beta1", "beta2", "clip")} | {"rate": rule.learning_rate}
    with peer("the PyTorch side", [python, str(_SCRIPT)]) as ask:
        made: dict[str, Side] = {}
        for kind in ("plain", "transformers"):
            for compiled in (False, True):
                key = f"{kind}_{'compiled' if compiled else 'eager'}"
                facts = ask(key=key, model=shape, kind=kind, compiled=compiled, **fields)
                if facts["parameters"] != ours:
                    raise ValueError(f"{key} has {facts['parameters']} parameters, our model {ours}")
                made[key] = functools.partial(
                    _step_s, ask, use=key, batch=stage.batch_size, length=stage.seq_len
                )
                made[key](2)  # compiles
        yield made, facts


def check(experiment: TrainingExperiment) -> None:
    """Raises ValueError for an experiment that the other side cannot train."""
    shape = {name: getattr(experiment.model, name) for name in _SHAPE}
    if experiment.model != ModelConfig(**shape):
        raise ValueError(
            "the model to compare must be a plain Llama: only sizes may differ from the defaults"
        )
    if (rule := experiment.train.optimizer).name != "adamw" or rule.weight_decay:
        raise ValueError(f"the other side trains with adamw without decay, this experiment with {rule.name}")


def _step_s(ask: QueryFn, steps: int, **fields: Any) -> float:
    return ask(steps=steps, **fields)["seconds"] / steps
