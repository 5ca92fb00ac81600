"""What the compilers make of every kernel: a record to hold later versions against.

    python -m pallas_kernels.aot_record --out=results/kernels_aot.csv        # writes the record
    python -m pallas_kernels.aot_record --against=results/kernels_aot.csv    # exit code 1 where one got worse

Nothing here is a time: registers, spills, shared memory and wgmma instructions of a Hopper kernel as ptxas
tells them; instruction bundles, vector spills and explicitly allocated VMEM of a TPU kernel from libtpu's own
dumps. The dump options are undocumented and may vanish; then the columns are empty and the guard says so.
Needs the aot-tpu / aot-cuda extras (`make aot` sets them up); about two minutes on one core.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pallas_kernels import aot, results
from pallas_kernels.aot_programs import PROGRAMS

# How much more than the record is let pass: a factor, and a sum for small counts.
MARGIN = {
    "bundles": (1.10, 16),
    "spills": (1.10, 16),
    "scoped_vmem_bytes": (1.0, 0),
    "registers": (1.0, 16),
    "spill_bytes": (1.0, 0),
    "shared_bytes": (1.0, 0),
    "temporary_bytes": (1.10, 1 << 20),
}
# And what no version may pass, whatever the record says. Of wgmma there must be at least one.
LIMIT = {"scoped_vmem_bytes": 16 << 20, "registers": 255, "spill_bytes": 0, "shared_bytes": 232_448}
COLUMNS = ("program", "chip", "kernels", "wgmma", *MARGIN)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; with --only its other rows stay")
    parser.add_argument("--against", type=Path, help="CSV to compare with")
    parser.add_argument("--only", default="", help="programs whose chip/name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON lines, not a table")
    options = parser.parse_args(argv)
    rows = []
    for row in measured(options.only):
        rows.append(row)
        print(json.dumps(row) if options.json else line(row), flush=True)
    if not rows:
        parser.error(f"--only={options.only} matches no program of a chip whose compiler is installed")
    if options.out:
        results.write_csv(options.out, merged(rows, options.out), about="python -m pallas_kernels.aot_record")
    if options.against and (worse := list(complaints(rows, results.read_csv(options.against)))):
        sys.exit("\n".join(worse))


def merged(rows: list[dict], path: Path) -> list[dict]:
    """The rows, and those of the file that they do not replace; programs that are no more are dropped."""
    new = {(row["chip"], row["program"]): row for row in rows}
    old = {(row["chip"], row["program"]): row for row in (results.read_csv(path) if path.exists() else [])}
    return [(old | new)[key] for key in every() if key in old | new]


def every() -> list[tuple[str, str]]:
    """Chip and name of every program."""
    return [(chip, name) for chip in PROGRAMS for name in PROGRAMS[chip]]


def line(row: dict) -> str:
    """A row for people: what was counted, by name."""
    counts = " ".join(f"{name} {row[name]}" for name in COLUMNS[2:] if row[name] != "")
    return f"{row['chip']:5} {row['program']:24} {counts}"


def measured(only: str = "") -> Iterator[dict]:
    """A row a program, for every chip whose compiler is here."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        # Read when the compilers are loaded, which is when the first topology is asked for.
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        for chip, programs in PROGRAMS.items():
            if why := aot.missing(chip):
                print(f"{chip}: left out, {why}", file=sys.stderr)
                continue
            for name, make in programs.items():
                if only in f"{chip}/{name}":
                    yield measure(chip, name, *make(), dump=dump)


def measure(chip: str, name: str, fn, arrays, *, dump: Path) -> dict:
    """Compiles one program and reads, then removes, what the compilers left in `dump`."""
    with _hushed():
        memory = aot.compile_for(chip, fn, *arrays).memory_analysis()
    read = hopper if aot.CHIPS[chip].family == "gpu" else tpu
    row = dict.fromkeys(COLUMNS, "") | {"program": name, "chip": chip} | read(dump)
    for file in dump.iterdir():
        file.unlink()
    return row | {"temporary_bytes": memory.temp_size_in_bytes}


@contextlib.contextmanager
def _hushed():
    """Nothing on stderr, C++ included: dumping looks for a disassembler, and regrets that there is none."""
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def hopper(dump: Path) -> dict:
    """Of all kernels of a program: the most registers and shared memory, all spills, all wgmma."""
    said = "".join(path.read_text() for path in dump.glob("*.ptxas"))
    host = "".join(path.read_text() for path in dump.glob("*.before_layout_inference.txt"))
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    if not registers:
        return {}
    return {
        "kernels": len(registers),
        "wgmma": sum(path.read_text().count("wgmma.mma_async") for path in dump.glob("*.ptx")),
        "registers": max(registers),
        "spill_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill", said)),
        "shared_bytes": max(int(n) for n in re.findall(r"dynamic_shared_memory_size %c(\d+)", host)),
    }


def tpu(dump: Path) -> dict:
    """Of all Pallas kernels of a program: their bundles and vector spills, and the most scoped VMEM."""
    bundles, spills, scoped = [], 0, []
    for path in dump.glob("*-schedule-analysis_final_bundles.txt"):
        said = path.read_text()
        # "TLP" is the program around the kernels, which quotes them.
        if "-TLP-" in path.name or 'custom_call_target="tpu_custom_call"' not in said:
            continue
        bundles.append(int(re.findall(r"total scheduled bundles:\s+(\d+)", said)[0]))
        kernel = path.name.rsplit("-", 2)[0].rstrip("0123456789").rstrip("-")
        (code,) = dump.glob(f"{_plain(kernel)}-*[0-9]-final_bundles.txt")
        spills += len(re.findall(r"\bvst\b[^;\n]*_spill\]", code.read_text()))
        (memory,) = dump.glob(f"{_plain(kernel)}-*-pre-finalize-registers-and-allocations.txt")
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


def _plain(name: str) -> str:
    """A name as a glob that matches it alone."""
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def complaints(rows: list[dict], record: list[dict]) -> Iterator[str]:
    """A sentence for each row that passes a limit, or is worse than its record by more than the margin."""
    before = {(row["chip"], row["program"]): row for row in record}
    for row in rows:
        where = f"{row['chip']} {row['program']}"
        if row["chip"] == "h100" and not row["wgmma"]:
            yield f"{where}: no wgmma instruction"
        for name, most in LIMIT.items():
            if row[name] != "" and int(row[name]) > most:
                yield f"{where}: {name} is {row[name]}, the chip allows {most}"
        old = before.get((row["chip"], row["program"]))
        if old is None:
            yield f"{where}: not in the record; write it anew"
            continue
        for name, (factor, more) in MARGIN.items():
            if (old[name] == "") != (row[name] == ""):
                now, then = row[name] or "not told", old[name] or "nothing"
                yield f"{where}: {name} is {now}, the record says {then}"
            elif row[name] != "" and int(row[name]) > factor * int(old[name]) + more:
                yield f"{where}: {name} is {row[name]}, the record says {old[name]}"


if __name__ == "__main__":
    main()
