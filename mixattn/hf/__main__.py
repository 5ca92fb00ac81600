"""Converts checkpoints between Hugging Face architectures and ours, and into MixAttention wirings.

python -m mixattn.hf convert --from=DIR --to=DIR                                to our own layout
python -m mixattn.hf convert --from=DIR --to=DIR --architecture=llama           and back
python -m mixattn.hf convert --from=DIR --to=DIR --wiring=ma_offset --window=1024 --init=mean
python -m mixattn.hf show --from=DIR                                            what it is, and its size
"""

import dataclasses
import sys
from pathlib import Path

import jax
from absl import flags
from flax import nnx

from mixattn import hf
from mixattn.hf import checkpoint_dir
from mixattn.hf.families import FAMILIES
from mixattn.tools import cli
from mixattn.uptrain import rewire

flags.DEFINE_string("from", None, "The checkpoint directory to read.")
flags.DEFINE_string("to", None, "The directory to write; what it held of a checkpoint is replaced.")
flags.DEFINE_enum("architecture", hf.NATIVE, [hf.NATIVE, *FAMILIES], "The layout to write.")
flags.DEFINE_string("dtype", None, "Convert the weights, e.g. bfloat16.")
flags.DEFINE_string("wiring", None, "Share K/V: a pattern's name or a wiring string.")
flags.DEFINE_integer(
    "window", None, "Window of sliding layers, in tokens, the query included.", lower_bound=1
)
flags.DEFINE_enum(
    "init", "mean", ["owner", "mean"], "A new owner's K/V weights: its own, or its group's mean."
)
_SETTINGS = (checkpoint_dir.CONFIG, checkpoint_dir.GENERATION)  # the later one wins
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _flag(name: str):
    return flags.FLAGS[name].value


def _source() -> Path:
    if not _flag("from"):
        raise ValueError("--from is missing; name a checkpoint directory")
    return Path(_flag("from"))


def convert() -> None:
    source, target = _source(), _flag("to")
    if not target:
        raise ValueError("--to is missing; name the directory to write")
    if Path(target).resolve() == source.resolve():
        raise ValueError(f"--from and --to are both {source}; convert into another directory")
    model, config = hf.load(source, dtype=_flag("dtype"))
    if _flag("wiring"):
        model = rewire(model, _flag("wiring"), window=_flag("window"), init=_flag("init"))
    tokenizer = hf.load_tokenizer(source) if (source / checkpoint_dir.TOKENIZER).exists() else None
    said = [checkpoint_dir.read_json(source / name) for name in _SETTINGS if (source / name).exists()]
    extra = {key: raw[key] for raw in said for key in _TOKEN_IDS if raw.get(key) is not None}
    hf.save(model, target, tokenizer, architecture=_flag("architecture"), extra=extra)
    kinds = f"{said[0]['model_type']} -> {_flag('architecture')}"
    print(f"{source} -> {target} ({kinds}): {_size(model)}, {config.dtype}")


def show() -> None:
    model, config = hf.load(_source())
    print(_size(model))
    for key, value in dataclasses.asdict(config).items():
        print(f"  {key:20} {value}")


def _size(model) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(nnx.split(model)[1])):,} parameters"


def main() -> None:
    COMMANDS[COMMAND]()


COMMANDS = {"convert": convert, "show": show}
COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""

if __name__ == "__main__":
    if COMMAND not in COMMANDS and not {"--help", "-h", "--helpfull"} & set(sys.argv):
        print(f"error: say one of {', '.join(COMMANDS)}, not {COMMAND!r}", file=sys.stderr)
        sys.exit(2)
    cli.run(main)
