"""The `mixattn` console script, which lists and runs every command of the project.

mixattn                                                         lists the commands
mixattn train --config=configs/demo.py --workdir=runs/demo      runs python -m train.main ...
"""

import importlib.util
import runpy
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A module that `python -m` runs, and a line of help."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "spec": Command("mixattn.spec", "draw a K/V wiring and the memory it needs"),
    "params": Command("mixattn.params", "count a model's parameters"),
    "hf": Command("mixattn.hf", "convert checkpoints from GGUF, and from and to Hugging Face layout"),
    "fits": Command(
        "mixattn.tools.aot_fit", "check whether serving a model fits a TPU or GPU, without the device"
    ),
    "train": Command("train.main", "train a model from a config"),
    "tokenize": Command("train.data", "tokenize a corpus before training"),
    "train-fits": Command(
        "train.aot_fit", "check whether training a model fits a TPU or GPU, without the device"
    ),
    "eviction": Command("train.experiments.eviction", "experiment: what evicting keys costs, by section"),
    "zipf-recall": Command(
        "train.experiments.zipf_recall", "experiment: eviction on a task with heavy hitters, trained here"
    ),
    "sparsity": Command("train.experiments.sparsity", "experiment: how few keys get most of the attention"),
    "recall": Command("train.experiments.recall", "experiment: recall beyond the windows, by wiring"),
    "wiring-quality": Command(
        "train.experiments.wiring_quality", "experiment: loss against KV bytes, by wiring"
    ),
    "uptrain": Command(
        "train.experiments.uptrain", "experiment: convert a dense model to a wiring by further training"
    ),
    "pretrained": Command(
        "train.experiments.pretrained", "experiment: a pre-trained model in MixAttention wirings, recovered"
    ),
    "recovery-methods": Command(
        "train.experiments.recovery_methods", "experiment: ways to recover a rewired model, compared"
    ),
    "chat": Command("serving.chat", "chat with a model on the terminal"),
    "serve": Command("serving.main", "serve a model offline: answer a file of requests, or compare policies"),
    "http": Command("serving.http", "serve a model by OpenAI's HTTP protocol, fair by client"),
    "cluster": Command("serving.cluster", "serve a model over HTTP from several engines, fair by client"),
    "report": Command("serving.offline.report", "draw the report of a training and serving run"),
    "simulate": Command("serving.simulate", "fairness and cluster experiments in virtual time"),
    "evals": Command("mixattn.evals", "measure models: arena, judge, longcontext, dafny, dafnybench, clover"),
    "offload": Command(
        "serving.offload",
        "mixture models larger than memory: plan, simulate, calibrate, run, bench",
    ),
    "model-evals": Command("serving.evals", "our models behind the evaluations: arena demo, judge exhibit"),
    "metropolis": Command("serving.metropolis", "out-of-order multi-agent simulation"),
    "bench-kernels": Command("pallas_kernels.bench", "benchmark: every op and backend"),
    "int8-quality": Command("mixattn.int8_quality", "measure what 8-bit weights cost a model"),
    "bench-model": Command("mixattn.bench", "benchmark: decoding against transformers, and sliding windows"),
    "bench-train": Command("train.bench", "benchmark: the training loop against its bare step and PyTorch"),
    "bench-border": Command("train.bench_border", "benchmark: digests of checkpoints and reading a corpus"),
    "bench-serving": Command(
        "serving.bench", "benchmark: the engine, part by part and against other programs"
    ),
    "bench-client": Command(
        "serving.bench.client", "benchmark: load on any server that speaks OpenAI's protocol"
    ),
    "aot-record": Command(
        "pallas_kernels.aot_record", "record what the TPU and GPU compilers produce for every kernel"
    ),
}


def main() -> None:
    """Runs `mixattn NAME ...` as `python -m MODULE ...`."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(listing())
        return
    name = sys.argv[1]
    if name not in COMMANDS:
        print(f"error: {name!r} is not one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"mixattn {name}", *sys.argv[2:]]
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def listing() -> str:
    """One line per command that this installation has."""
    width = max(map(len, COMMANDS))
    lines = [
        f"  {name:{width}}  {command.summary}"
        for name, command in COMMANDS.items()
        if importlib.util.find_spec(command.module.split(".")[0]) is not None
    ]
    return "\n".join(
        ["usage: mixattn COMMAND [flags]      (mixattn COMMAND --help shows its flags)", "", *lines]
    )


if __name__ == "__main__":
    main()
