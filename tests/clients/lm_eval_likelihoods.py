"""lm-evaluation-harness, local-completions: log-likelihoods equal those of the model without a server.

Takes a third argument: a JSON file with the expected values (see offline.py). Imports no torch.
"""

import json
import sys
from importlib.metadata import version

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

URL, MODEL, EXPECTED = sys.argv[1:4]
TOLERANCE = 1e-4  # per token


def main() -> None:
    with open(EXPECTED, encoding="utf-8") as file:
        expected = json.load(file)
    model = LocalCompletionsAPI(
        base_url=f"{URL}/v1/completions",
        model=MODEL,
        tokenizer_backend="remote",
        max_length=expected["max_length"],
        batch_size=4,
        num_concurrent=2,
        max_retries=1,
    )
    pairs = expected["pairs"]
    told = model.loglikelihood([_instance("loglikelihood", (p["context"], p["continuation"])) for p in pairs])
    worst = 0.0
    for pair, (value, greedy) in zip(pairs, told):
        off = abs(value - pair["value"]) / pair["tokens"]
        assert off <= TOLERANCE, (pair, value)
        assert greedy == pair["greedy"], (pair, greedy)
        worst = max(worst, off)
    assert {p["greedy"] for p in pairs} == {True, False}
    rolling = model.loglikelihood_rolling(
        [_instance("loglikelihood_rolling", (p["text"],)) for p in expected["texts"]]
    )
    for text, value in zip(expected["texts"], rolling):
        value = value[0] if isinstance(value, tuple) else value
        assert abs(value - text["value"]) <= TOLERANCE * text["tokens"], (text, value)
    until = {"until": ["e"], "max_gen_toks": 24, "temperature": 0}
    [made] = model.generate_until([_instance("generate_until", ("the quick brown", until))])
    assert "e" not in made
    assert "torch" not in sys.modules
    greedy, each = sum(p["greedy"] for p in pairs), f"worst {worst:.1e} a token"
    print(
        f"lm_eval {version('lm_eval')}: ok, {len(pairs)} log-likelihoods ({each}, {greedy} greedy), "
        f"{len(rolling)} rolling, generate_until; remote tokenizer, no torch"
    )


def _instance(kind: str, arguments: tuple[object, ...]) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


if __name__ == "__main__":
    main()
