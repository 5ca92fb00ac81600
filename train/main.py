"""Trains the experiment of a config file into a folder; the same command again goes on where it stopped.

    python -m train.main --config=configs/demo.py --workdir=runs/demo
    python -m train.main --config=configs/demo.py --workdir=runs/other --config.train.optimizer.rate=0.01

What it leaves in the workdir: data/ (tokenizer, token arrays), checkpoints/, metrics.csv (a row a step),
heldout.jsonl (documents never trained on, as token ids), model/ (weights and tokenizer in Hugging Face
layout) and summary.json, written last.
"""

import os
import sys

from train import malloc_tuning

if __name__ == "__main__":
    malloc_tuning.restart_with_huge_pages()

from absl import flags, logging

from mixattn.tools import cli


def _main() -> None:
    malloc_tuning.keep()
    experiment = cli.config()
    if not flags.FLAGS.workdir:
        raise ValueError("--workdir is missing; name a folder, e.g. --workdir=runs/demo")
    # jax is imported only now: a wrong config is refused at once.
    from train import checkpoint, mesh, run

    sys.unraisablehook = checkpoint.without_late_answers(sys.unraisablehook)
    mesh.join(flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process)
    given = {name: flags.FLAGS[name].value for name in ("step", "profile", "tensorboard")}
    run.run(experiment, flags.FLAGS.workdir, **given)


def _flags() -> None:
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")
    flags.DEFINE_integer("step", None, "Go on from the checkpoint of this step instead of the newest.")
    flags.DEFINE_boolean("profile", False, "Write a trace of five steps to WORKDIR/profile.")
    flags.DEFINE_boolean("tensorboard", False, "Write the metrics to WORKDIR/tensorboard too.")
    for name, default, words in (
        ("coordinator", "", "host:port of process 0, for a run of several processes."),
        ("processes", "1", "Processes in this run."),
        ("process", "0", "The number of this one."),
    ):
        value = os.environ.get(f"MIXATTN_{name.upper()}", default)
        words += f" Also from MIXATTN_{name.upper()}."
        (flags.DEFINE_integer if default else flags.DEFINE_string)(
            name, int(value) if default else value, words
        )


if __name__ == "__main__":
    # Libraries log from their own threads what they also raise; a user gets the one sentence.
    logging.set_verbosity(logging.FATAL)
    _flags()
    cli.run(_main)
