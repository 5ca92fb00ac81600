"""transformers opens what we exported: logits, tokenizer, special tokens, and where `generate` stops.

    python torch_exports.py DIR/exports

Imports torch, not our packages. Fails if a case differs, and names the worst. Logits of families are compared
in float64, so that the difference is not that of two roundings.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

# Relative to the largest logit: of families in float64, of the native layout in float32.
FAMILY_TOLERANCE, NATIVE_TOLERANCE = 1e-9, 1e-4


@torch.no_grad()
def check(folder: Path) -> tuple[float, list[str]]:
    """The largest difference of logits relative to the largest logit, and what else is wrong."""
    want, about, wrong = np.load(folder / "want.npz"), json.loads((folder / "want.json").read_text()), []
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", trust_remote_code=about["native"], dtype=torch.float32
    ).eval()
    if not about["native"]:
        model.set_experts_implementation("eager")  # grouped products have no float64
    tokens = torch.from_numpy(want["tokens"].astype(np.int64))
    logits = model(tokens, use_cache=False).logits if about["native"] else logits_f64(model, tokens)
    difference = float(np.abs(logits.numpy() - want["logits"]).max() / max(1, np.abs(want["logits"]).max()))
    if about["new"]:
        wrong += check_generation(model, tokens, about)
    return difference, wrong + check_tokenizer(folder, model, about)


def logits_f64(model, tokens: torch.Tensor) -> torch.Tensor:
    with everything_in_float64():
        wide = type(model)(model.config).eval()  # anew, since rotations are computed when a model is made
        wide.load_state_dict(model.state_dict())
        logits = wide(tokens, use_cache=False).logits
    assert logits.dtype == torch.float64
    return logits


@contextlib.contextmanager
def everything_in_float64() -> Iterator[None]:
    """Models name float32 in norms, softmax, rotations and routers; here that name is float64."""
    narrow, cast, float64 = torch.float32, torch.Tensor.float, torch.float64
    torch.set_default_dtype(float64)
    torch.float, torch.float32, torch.Tensor.float = float64, float64, torch.Tensor.double
    try:
        yield
    finally:
        torch.float, torch.float32, torch.Tensor.float = narrow, narrow, cast
        torch.set_default_dtype(narrow)


def check_generation(model, tokens: torch.Tensor, about: dict) -> list[str]:
    first = tokens[:1]
    out = model.generate(first, attention_mask=torch.ones_like(first), do_sample=False, max_new_tokens=12)
    new = out[0, first.shape[1] :].tolist()
    wrong = [] if new == about["new"] else [f"generate gives {new}, not {about['new']}"]
    # The same row beside a longer one: padding on the left changes nothing.
    longer = torch.cat([torch.tensor([[5, 6, 7]]), first], dim=1)
    padded = torch.cat([torch.full((1, 3), about["pad"]), first], dim=1)
    mask = torch.ones(2, longer.shape[1], dtype=torch.long)
    mask[0, :3] = 0
    out = model.generate(torch.cat([padded, longer]), attention_mask=mask, do_sample=False, max_new_tokens=12)
    new = out[0, longer.shape[1] :].tolist()[: len(about["new"])]
    return wrong if new == about["new"] else [*wrong, f"a padded row gives {new}, not {about['new']}"]


def check_tokenizer(folder: Path, model, about: dict) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=about["native"])
    found = {
        "ids": [tokenizer(text)["input_ids"] for text in about["texts"]],
        "named_eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }
    wrong = [f"{name} {value}, not {about[name]}" for name, value in found.items() if value != about[name]]
    for where in (model.config, model.generation_config):
        if where.eos_token_id != about["eos"] or where.pad_token_id != about["pad"]:
            wrong.append(f"{type(where).__name__} has eos {where.eos_token_id}, pad {where.pad_token_id}")
    if tokenizer.bos_token_id is not None or model.generation_config.bos_token_id is not None:
        wrong.append(f"bos {tokenizer.bos_token_id} {model.generation_config.bos_token_id}, not None")
    if tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) != "x":
        wrong.append("the chat template is another one")
    text = tokenizer.decode(about["ids"][2])
    return wrong if text == about["texts"][2] else [*wrong, f"decodes to {text!r}"]


def main(folder: Path) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    bad, worst = [], {False: 0.0, True: 0.0}
    for case in sorted(path.parent for path in folder.glob("*/want.json")):
        native = case.name.startswith("native")
        try:
            difference, wrong = check(case)
        except Exception as why:
            difference, wrong = float("inf"), [f"{type(why).__name__}: {' '.join(str(why).split())[:200]}"]
        worst[native] = max(worst[native], difference)
        if difference > (NATIVE_TOLERANCE if native else FAMILY_TOLERANCE) or wrong:
            bad.append(case.name)
        print(f"{case.name:32} {difference:.1e} {'; '.join(wrong) or 'ok'}", flush=True)
    print(f"largest relative difference: families {worst[False]:.1e}, native {worst[True]:.1e}")
    if bad:
        sys.exit(f"{len(bad)} exports differ in transformers: {', '.join(bad)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
