"""Trains the experiment of a config file in a folder; the same command again resumes it.

    python -m train.main --config=configs/demo.py --workdir=runs/demo
    python -m train.main --config=configs/demo.py --workdir=runs/other --config.train.seed=1

The workdir then holds data/ (tokenizer, token arrays), checkpoints/, metrics.csv (one row per step),
heldout.jsonl (documents never trained on, as token ids), model/ (weights and tokenizer in Hugging Face
layout) and summary.json, which is written last.
"""

import os
import sys

from train import malloc_tuning

if __name__ == "__main__":
    malloc_tuning.restart_with_huge_pages()

from absl import flags, logging

from mixattn.tools import cli


def _main() -> None:
    malloc_tuning.keep_freed_memory()
    experiment = cli.config()
    if not flags.FLAGS.workdir:
        raise ValueError("--workdir is missing; pass a folder, e.g. --workdir=runs/demo")
    # Imported late, so that a wrong config is refused at once.
    from train import checkpoint, mesh, run

    sys.unraisablehook = checkpoint.ignore_closed_loop_errors(sys.unraisablehook)
    mesh.join(flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process)
    options = {name: flags.FLAGS[name].value for name in ("step", "profile", "tensorboard")}
    run.run(experiment, flags.FLAGS.workdir, **options)


def _flags() -> None:
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")
    flags.DEFINE_integer("step", None, "Resume from the checkpoint of this step instead of the newest.")
    flags.DEFINE_boolean("profile", False, "Write a profiler trace of five steps to WORKDIR/profile.")
    flags.DEFINE_boolean(
        "tensorboard", False, "Also write the metrics as TensorBoard events to WORKDIR/tensorboard."
    )
    for name, default, text in (
        ("coordinator", "", "host:port of process 0, for runs with several processes."),
        ("processes", "1", "Number of processes in this run."),
        ("process", "0", "Index of this process, from 0."),
    ):
        value = os.environ.get(f"MIXATTN_{name.upper()}", default)
        text += f" Also read from MIXATTN_{name.upper()}."
        (flags.DEFINE_integer if default else flags.DEFINE_string)(
            name, int(value) if default else value, text
        )


if __name__ == "__main__":
    # Libraries log errors that they also raise; users should see one sentence only.
    logging.set_verbosity(logging.FATAL)
    _flags()
    cli.run(_main)
