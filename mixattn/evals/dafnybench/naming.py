"""The models that a command line can name."""

from mixattn.evals.dafny.protocol import Verify
from mixattn.evals.dafnybench.annotator import annotator
from mixattn.evals.dafnybench.models import (
    CHEATERS,
    Model,
    cheater,
    identity,
    noisy,
    oracle,
    oracle_at,
    served,
)


def named(
    name: str,
    base_url: str,
    verify: Verify,
    seed: int = 0,
    *,
    max_tokens: int = 4096,
    temperature: float = 0.3,
) -> Model:
    """The model that a command line names; the last two are of a server's model.

    Raises:
      ValueError: there is none of that name, and no server.
    """
    kind, _, value = name.partition("@")
    if name in ("identity", "oracle"):
        return identity if name == "identity" else oracle
    if kind == "oracle" and value.isdigit():
        return oracle_at(int(value))
    if kind == "noisy":
        return noisy(_probability(name, value), seed)
    if name == "annotator":
        return annotator(verify)
    if name.removeprefix("cheater-") in CHEATERS:
        return cheater(name.removeprefix("cheater-"))
    if base_url:
        return served(base_url, name, max_tokens=max_tokens, temperature=temperature)
    cheaters = ", ".join(f"cheater-{kind}" for kind in CHEATERS)
    raise ValueError(
        f"--model={name} is not scripted, and there is no --url of a server;"
        f" scripted are identity, oracle, oracle@3, noisy@0.3, annotator, ground_truth, {cheaters}"
    )


def _probability(name: str, value: str) -> float:
    try:
        p = float(value or 0.3)
    except ValueError:
        p = -1.0
    if not 0 <= p <= 1:
        raise ValueError(
            f"--model={name} names {value!r}; the noisy model takes a probability, e.g. noisy@0.3"
        )
    return p
