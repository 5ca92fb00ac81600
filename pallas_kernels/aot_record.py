"""Compiler statistics of every kernel: a record that later versions are compared with.

    python -m pallas_kernels.aot_record --out=results/kernels_aot.csv        # writes the record
    python -m pallas_kernels.aot_record --against=results/kernels_aot.csv    # exit code 1 on a regression

No column is a time. For a Hopper kernel: registers, spills, shared memory and wgmma instructions as reported
by ptxas. For a TPU kernel: instruction bundles, vector spills and explicitly allocated VMEM from libtpu's
dumps. The dump options are undocumented and may vanish; the columns are then empty, which the comparison
reports. Needs the aot-tpu / aot-cuda extras (`make aot` sets them up). Takes about two minutes on one core.
"""

import contextlib
import glob
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from pallas_kernels import aot, results
from pallas_kernels.aot_programs import PROGRAMS

type Row = dict[str, Any]

# The allowed increase over the record: a factor, and an addend for small counts.
MARGIN = {
    "bundles": (1.10, 16),
    "spills": (1.10, 16),
    "scoped_vmem_bytes": (1.0, 0),
    "registers": (1.0, 16),
    "spill_bytes": (1.0, 0),
    "shared_bytes": (1.0, 0),
    "temporary_bytes": (1.10, 1 << 20),
}
# Limits that hold whatever the record says. A Hopper kernel also needs at least one wgmma.
LIMIT = {"scoped_vmem_bytes": 16 << 20, "registers": 255, "spill_bytes": 0, "shared_bytes": 232_448}
COLUMNS = ("program", "chip", "kernels", "wgmma", *MARGIN)


def define_flags() -> None:
    """Declares the flags of this command."""
    flags.DEFINE_string("out", None, "CSV to write. With --only, its other rows are kept.")
    flags.DEFINE_string("against", None, "CSV to compare with.")
    flags.DEFINE_string("only", "", "Compile only programs whose chip/name contains this.")
    flags.DEFINE_bool("json", False, "Print JSON lines instead of a table.")


def main() -> None:
    """Compiles the programs, prints a row per program, then writes and compares as the flags say."""
    given = flags.FLAGS
    rows = []
    for row in measure_all(given.only):
        rows.append(row)
        print(json.dumps(row) if given.json else format_row(row), flush=True)
    if not rows:
        raise ValueError(f"--only={given.only} matches no program of a chip whose compiler is installed")
    if given.out:
        path = Path(given.out)
        results.write_csv(path, merge_rows(rows, path), about="python -m pallas_kernels.aot_record")
    if given.against and (worse := list(regressions(rows, results.read_csv(given.against)))):
        sys.exit("\n".join(worse))


def merge_rows(rows: list[Row], path: Path) -> list[Row]:
    """The rows, and the rows of the file that they do not replace, without programs that no longer exist."""
    new = {(row["chip"], row["program"]): row for row in rows}
    old = {(row["chip"], row["program"]): row for row in (results.read_csv(path) if path.exists() else [])}
    return [(old | new)[key] for key in all_programs() if key in old | new]


def all_programs() -> list[tuple[str, str]]:
    """Chip and name of every program."""
    return [(chip, name) for chip in PROGRAMS for name in PROGRAMS[chip]]


def format_row(row: Row) -> str:
    """A row as a line of the table."""
    counts = " ".join(f"{name} {row[name]}" for name in COLUMNS[2:] if row[name] != "")
    return f"{row['chip']:5} {row['program']:24} {counts}"


def measure_all(only: str = "") -> Iterator[Row]:
    """One row per program, for every chip whose compiler is installed."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        # Read when the compilers are loaded, which the first request for a topology does.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        for chip, programs in PROGRAMS.items():
            if why := aot.missing(chip):
                print(f"{chip}: skipped, {why}", file=sys.stderr)
                continue
            for name, make in programs.items():
                if only in f"{chip}/{name}":
                    yield measure(chip, name, *make(), dump=dump)


def measure(chip: str, name: str, fn: Callable[..., Any], arrays: tuple[Any, ...], *, dump: Path) -> Row:
    """Compiles one program; reads and removes the files that the compilers wrote to `dump`."""
    with _silence_stderr():
        memory: Any = aot.compile_for(chip, fn, *arrays).memory_analysis()
    read = read_gpu_dump if aot.CHIPS[chip].family == "gpu" else read_tpu_dump
    row = dict.fromkeys(COLUMNS, "") | {"program": name, "chip": chip} | read(dump)
    for file in dump.iterdir():
        file.unlink()
    return row | {"temporary_bytes": memory.temp_size_in_bytes}


@contextlib.contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discards stderr, C++ included: dumping warns about a missing disassembler."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def read_gpu_dump(dump: Path) -> dict[str, int]:
    """Over the kernels of a program: maximum registers and shared memory, total spills and wgmma."""
    report = "".join(path.read_text() for path in dump.glob("*.ptxas"))
    host = "".join(path.read_text() for path in dump.glob("*.before_layout_inference.txt"))
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    if not registers:
        return {}
    return {
        "kernels": len(registers),
        "wgmma": sum(path.read_text().count("wgmma.mma_async") for path in dump.glob("*.ptx")),
        "registers": max(registers),
        "spill_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill", report)),
        "shared_bytes": max(int(n) for n in re.findall(r"dynamic_shared_memory_size %c(\d+)", host)),
    }


def read_tpu_dump(dump: Path) -> dict[str, int]:
    """Over the Pallas kernels of a program: total bundles and vector spills, and maximum scoped VMEM."""
    bundles, spills, scoped = [], 0, []
    for path in dump.glob("*-schedule-analysis_final_bundles.txt"):
        report = path.read_text()
        # "TLP" is the surrounding program, which quotes the kernels.
        if "-TLP-" in path.name or 'custom_call_target="tpu_custom_call"' not in report:
            continue
        bundles.append(int(re.findall(r"total scheduled bundles:\s+(\d+)", report)[0]))
        kernel = path.name.rsplit("-", 2)[0].rstrip("0123456789").rstrip("-")
        (code,) = dump.glob(f"{glob.escape(kernel)}-*[0-9]-final_bundles.txt")
        spills += len(re.findall(r"\bvst\b[^;\n]*_spill\]", code.read_text()))
        (memory,) = dump.glob(f"{glob.escape(kernel)}-*-pre-finalize-registers-and-allocations.txt")
        sizes = re.findall(r"space=vmem, size = (0x[0-9a-f]+), scoped", memory.read_text())
        scoped.append(sum(int(size, 16) for size in sizes))
    if not bundles:
        return {}
    return {
        "kernels": len(bundles),
        "bundles": sum(bundles),
        "spills": spills,
        "scoped_vmem_bytes": max(scoped),
    }


def regressions(rows: list[Row], record: list[dict[str, str]]) -> Iterator[str]:
    """A sentence for each value that exceeds a limit, or exceeds its record by more than the margin."""
    before = {(row["chip"], row["program"]): row for row in record}
    for row in rows:
        where = f"{row['chip']} {row['program']}"
        if row["chip"] == "h100" and not row["wgmma"]:
            yield f"{where}: no wgmma instruction"
        for name, limit in LIMIT.items():
            if row[name] != "" and int(row[name]) > limit:
                yield f"{where}: {name} is {row[name]}, the chip allows {limit}"
        old = before.get((row["chip"], row["program"]))
        if old is None:
            yield f"{where}: not in the record; write the record again"
            continue
        for name, (factor, addend) in MARGIN.items():
            if (old[name] == "") != (row[name] == ""):
                now, then = row[name] or "not reported", old[name] or "nothing"
                yield f"{where}: {name} is {now}, the record says {then}"
            elif row[name] != "" and int(row[name]) > factor * int(old[name]) + addend:
                yield f"{where}: {name} is {row[name]}, the record says {old[name]}"


def _guarded(argv: list[str]) -> None:
    try:
        if argv[1:]:
            raise ValueError(f"{argv[1]!r} is no flag; --help lists the flags")
        main()
    except (ValueError, OSError) as why:
        _fail(why)


def _parse(argv: list[str]) -> list[str]:
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as why:
        _fail(why)


def _fail(why: Exception) -> NoReturn:
    print(f"error: {' '.join(str(why).split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    define_flags()
    app.run(_guarded, flags_parser=_parse)
