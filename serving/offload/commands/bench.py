"""Measures the runtime as ratios within one run, into a CSV.

python -m serving.offload bench --device_memory_gb=0.5 --json           about 10 minutes on one core
python -m serving.offload bench --only=padded,start                     some lines of the table
python -m serving.offload bench --only=accelerate --peer=.venv-parity/bin/python     beside disk_offload
python -m serving.offload bench --only=cache,int8 --trained=runs/small_moe/model   see configs/small_moe.py

The measured models have random weights (1 GiB of experts in Mixtral's layout; 2.1 GiB for `overlap`) and are
written into --workdir at the first start. Pairs are interleaved; the table gives median, least and most of
the rounds, and the load average beside them. What is throttled or padded says so in its note. Nothing here
was measured on a GPU.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags, logging
from rich.console import Console
from rich.table import Table

from serving.offload.commands import command_line

FLAGS = flags.FLAGS
CASES = ("overlap", "balance", "overhead", "padded", "start", "cache", "int8", "accelerate")
TRAINED, PEER = "runs/small_moe/model", ".venv-parity/bin/python"  # as configs/small_moe.py, make parity
NEEDS = {"cache": "trained", "int8": "trained", "accelerate": "peer"}  # flags


def start(argv: list[str]) -> None:
    flags.DEFINE_float("device_memory_gb", 0.5, "GiB that the plan may use for the line whose N it chooses.")
    flags.DEFINE_list("only", None, f"Some of {', '.join(CASES)}.")
    flags.DEFINE_integer("rounds", 5, "Rounds of each pair; the median counts.")
    flags.DEFINE_string("workdir", "runs/offload_bench", "Folder of the models that are measured.")
    flags.DEFINE_string(
        "trained",
        None,
        f"Trained mixture model for `cache` and `int8`; {TRAINED} by default, if it is there.",
    )
    flags.DEFINE_string(
        "peer", None, f"Python with torch and accelerate for `accelerate`; {PEER} by default, if it is there."
    )
    flags.DEFINE_list("batches", ["1", "32", "128"], "Batches of `accelerate`.")
    flags.DEFINE_string("out", "results/offload/bench.csv", "CSV to write.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    logging.set_verbosity(logging.ERROR)
    command_line.run(__name__, _main, argv)


def _main() -> None:
    for flag, usual in (("trained", TRAINED), ("peer", PEER)):
        if FLAGS[flag].value is None and Path(usual).exists():
            setattr(FLAGS, flag, usual)
    wanted = FLAGS.only or [case for case in CASES if case not in NEEDS or FLAGS[NEEDS[case]].value]
    for case in NEEDS if not FLAGS.only else ():
        if case not in wanted:
            print(f"left out: {case}, which needs --{NEEDS[case]}", file=sys.stderr)
    if unknown := [case for case in wanted if case not in CASES]:
        raise ValueError(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    if FLAGS.rounds < 1 or not FLAGS.device_memory_gb > 0:
        raise ValueError(
            f"--rounds is {FLAGS.rounds}, --device_memory_gb {FLAGS.device_memory_gb}; they must be above 0"
        )
    for case, flag in NEEDS.items():
        if case in wanted and not FLAGS[flag].value:
            raise ValueError(f"the case {case} is wanted, but --{flag} is missing")
    rows: list[dict[str, Any]] = []
    for case in wanted:
        print(f"measuring {case} ...", file=sys.stderr, flush=True)
        rows += _measure(case)
        _write(rows)
    if FLAGS.json:
        print(json.dumps({"rows": rows}))
    else:
        _show(rows)


def _measure(case: str) -> list[dict[str, Any]]:
    from serving.offload.bench import batch_one, cases, model
    from serving.offload.runtime.checkpoint import locate

    folder = Path(FLAGS.workdir)
    if case == "padded":
        return cases.padded(FLAGS.rounds)
    if case == "start":
        return cases.start(folder, FLAGS.rounds)
    if NEEDS.get(case) == "trained":
        of = {"cache": batch_one.cache_or_stream, "int8": batch_one.int8_or_stored}[case]
        return of(Path(FLAGS.trained), _prompts(Path(FLAGS.trained)), FLAGS.rounds)
    if case == "overlap":
        deep = model.write(folder / "deep", model.DEEP)
        return cases.overlap(locate(deep), FLAGS.device_memory_gb, FLAGS.rounds)
    path = model.write(folder / "measured")
    if case == "accelerate":
        batches = tuple(int(batch) for batch in FLAGS.batches)
        checkpoint = locate(path)
        slots = int(FLAGS.device_memory_gb * 2**30 // checkpoint.slot_bytes)
        return cases.accelerate(
            path, Path(FLAGS.peer), FLAGS.rounds, batches, folder / "peer", min(slots, len(checkpoint.pages))
        )
    checkpoint = locate(path)
    return getattr(cases, case)(checkpoint, FLAGS.rounds)


def _prompts(model: Path) -> list[list[int]]:
    """Beginnings of held-out documents beside a trained model (see train.main)."""
    documents = model.parent / "heldout.jsonl"
    if not documents.exists():
        raise ValueError(f"{documents} does not exist; --trained names WORKDIR/model of a run of train.main")
    lines = documents.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["ids"][:48] for line in lines][:32]


def _write(rows: list[dict[str, Any]]) -> None:
    from pallas_kernels import results

    Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
    note = (
        "ratios within one run, median least most of the rounds; random weights except case cache; CPU only"
    )
    config = f"device_memory_gb {FLAGS.device_memory_gb}, rounds {FLAGS.rounds}"
    results.write_csv(FLAGS.out, rows, command="serving.offload bench", config=config, note=note)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="Ratios within one run")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 170).print(table)
