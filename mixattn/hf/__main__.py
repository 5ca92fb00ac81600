"""Converts checkpoints between Hugging Face architectures and the native layout, and to other wirings.

python -m mixattn.hf convert --from=DIR --to=DIR                          to the native layout
python -m mixattn.hf convert --from=FILE.gguf --to=DIR --dtype=bfloat16   a GGUF file, dequantised
python -m mixattn.hf convert --from=FILE.gguf --to=DIR --quantize=int8    8-bit weights, a quarter of float32
python -m mixattn.hf convert --from=DIR --to=DIR --architecture=llama     to a Hugging Face architecture
python -m mixattn.hf convert --from=DIR --to=DIR --wiring=ma_offset --window=1024 --init=mean
python -m mixattn.hf show --from=DIR                                      the parameter count and the config

The tokenizer, chat templates, special tokens and generation settings of the source go along. transformers
opens what is written: a Hugging Face architecture by itself, the native layout with trust_remote_code=True.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax import nnx

from mixattn import Transformer, hf
from mixattn.hf.families import FAMILIES
from mixattn.hf.sources import open_source
from mixattn.quantize import quantize
from mixattn.tools import cli
from mixattn.uptrain import rewire

flags.DEFINE_string("from", None, "The checkpoint directory or GGUF file to read.")
flags.DEFINE_string("to", None, "The directory to write; a checkpoint in it is replaced.")
flags.DEFINE_enum(
    "architecture", hf.NATIVE, [hf.NATIVE, *FAMILIES], "Architecture of the written checkpoint."
)
flags.DEFINE_string("dtype", None, "Dtype to convert the weights to, e.g. bfloat16.")
flags.DEFINE_enum(
    "quantize", "", ["", "int8"], "Write 8-bit weights with a scale per output channel (native layout)."
)
flags.DEFINE_string("wiring", None, "New K/V wiring: a pattern's name or a wiring string.")
flags.DEFINE_integer(
    "window", None, "Window of sliding layers, in tokens, including the query.", lower_bound=1
)
flags.DEFINE_enum(
    "init", "mean", ["owner", "mean"], "Initial K/V weights of a new owner: its own, or its group's mean."
)


def _flag(name: str) -> Any:
    return flags.FLAGS[name].value


def _source() -> Path:
    if not _flag("from"):
        raise ValueError("--from is missing; name a checkpoint directory or a GGUF file")
    return Path(_flag("from"))


def convert() -> None:
    source, target = _source(), _flag("to")
    if not target:
        raise ValueError("--to is missing; name the directory to write")
    if Path(target).resolve() == source.resolve():
        raise ValueError(f"--from and --to are both {source}; convert into another directory")
    architecture, method = _flag("architecture"), _flag("quantize")
    if method and architecture != hf.NATIVE:
        raise ValueError(
            f"--quantize={method} and --architecture={architecture}: only {hf.NATIVE} holds codes"
        )
    # A new wiring averages weights, which must be numbers still.
    model, config = hf.load(source, dtype=_flag("dtype"), quantize="" if _flag("wiring") else method)
    if _flag("wiring"):
        if config.quantize:
            raise ValueError(f"--wiring={_flag('wiring')} needs float weights; {source} is {config.quantize}")
        model = rewire(model, _flag("wiring"), window=_flag("window"), init=_flag("init"))
        model = quantize(model, method) if method else model
    raw = open_source(source).config()
    hf.save(model, target, architecture=architecture, companions=hf.companions(source))
    kind = model.config.quantize or config.dtype
    print(f"{source} -> {target} ({raw['model_type']} -> {architecture}): {_size(model)}, {kind}")


def show() -> None:
    model, config = hf.load(_source())
    print(_size(model))
    for name, value in dataclasses.asdict(config).items():
        print(f"  {name:20} {value}")


def _size(model: Transformer) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(nnx.split(model)[1])):,} parameters"


def main() -> None:
    COMMANDS[COMMAND]()


COMMANDS = {"convert": convert, "show": show}
COMMAND = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""

if __name__ == "__main__":
    if COMMAND not in COMMANDS and not {"--help", "-h", "--helpfull"} & set(sys.argv):
        print(f"error: the command must be one of {', '.join(COMMANDS)}, not {COMMAND!r}", file=sys.stderr)
        sys.exit(2)
    cli.run(main)
