"""Measures what a plan needs to know about this machine: reading from disk, copying, and multiplying.
Seconds.

python -m serving.offload calibrate --checkpoint=DIR
python -m serving.offload calibrate --file=/data/model.safetensors --out=rates.json --json

Reads bypass the page cache (O_DIRECT) where the file system allows it; the report says if it does not,
because buffered reads may then come from memory. Rates are the median of a few rounds under the load that the
machine has meanwhile.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mixattn.tools import files
from serving.offload.commands import command_line
from serving.offload.store import PageReader, aligned_buffer

FLAGS = flags.FLAGS
CHUNK_BYTES = 4 << 20
COPY_BYTES = 64 << 20
SIDE = 512  # of the matrices multiplied


def start(argv: list[str]) -> None:
    flags.DEFINE_string("checkpoint", None, "Checkpoint directory whose largest file is read.")
    flags.DEFINE_string("file", None, "A file to read, instead of a checkpoint's.")
    flags.DEFINE_integer("rounds", 5, "Rounds of each measurement; the median counts.")
    flags.DEFINE_integer("read_mb", 64, "MiB read per round.")
    flags.DEFINE_string("out", None, "Write the rates into this JSON file too.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of lines.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    for name in ("rounds", "read_mb"):
        if FLAGS[name].value < 1:
            raise ValueError(f"--{name} is {FLAGS[name].value}; it must be at least 1")
    report = measure(_file(), rounds=FLAGS.rounds, read_bytes=FLAGS.read_mb << 20)
    if FLAGS.out:
        files.write_json(Path(FLAGS.out), report)
        print(f"wrote {FLAGS.out}", file=sys.stderr)
    if FLAGS.json:
        print(json.dumps(report))
        return
    way = (
        "O_DIRECT, not from memory"
        if report["direct"]
        else "buffered: O_DIRECT is refused here, so maybe from memory"
    )
    print(f"reading   {report['read_Bps'] / 2**30:8.2f} GiB/s ({way})")
    print(f"copying   {report['copy_Bps'] / 2**30:8.2f} GiB/s")
    print(f"multiply  {report['matmul_flops'] / 1e9:8.1f} GFLOP/s (float32, {SIDE} x {SIDE}, numpy)")
    print(f"load average {report['load_average']:.1f} on {os.cpu_count()} cores")


def _file() -> Path:
    if (FLAGS.checkpoint is None) == (FLAGS.file is None):
        raise ValueError(f"--checkpoint is {FLAGS.checkpoint} and --file {FLAGS.file}; give exactly one")
    if FLAGS.file is not None:
        return Path(FLAGS.file)
    found = sorted(Path(FLAGS.checkpoint).glob("*.safetensors"), key=lambda path: path.stat().st_size)
    if not found:
        raise ValueError(f"{FLAGS.checkpoint} has no *.safetensors file to read")
    return found[-1]


def measure(path: Path, *, rounds: int, read_bytes: int) -> dict[str, Any]:
    """Median rates: bytes a second of reading and copying, FLOP a second of a float32 product.

    Raises:
      ValueError: the file is smaller than one read.
    """
    size = path.stat().st_size
    if size < CHUNK_BYTES:
        raise ValueError(f"{path} has {size} bytes; measuring reads {CHUNK_BYTES} at a time")
    with PageReader([path]) as reader:
        read_s, direct = _reading(reader, path, size, rounds, read_bytes)
    source, target = np.ones(COPY_BYTES, np.uint8), np.ones(COPY_BYTES, np.uint8)
    a = np.ones((SIDE, SIDE), np.float32)
    product = np.ones_like(a)
    return {
        "file": path.name,
        "direct": direct,
        "read_Bps": read_s,
        "copy_Bps": COPY_BYTES / _median(lambda: np.copyto(target, source), rounds),
        "matmul_flops": 2 * SIDE**3 / _median(lambda: np.matmul(a, a, out=product), rounds),
        "load_average": os.getloadavg()[0],
    }


def _reading(reader: PageReader, path: Path, size: int, rounds: int, read_bytes: int) -> tuple[float, bool]:
    buffer = aligned_buffer(CHUNK_BYTES)
    chunks = size // CHUNK_BYTES
    place = 0

    def read() -> None:
        nonlocal place
        for _ in range(max(1, read_bytes // CHUNK_BYTES)):
            reader.read(path, (place % chunks) * CHUNK_BYTES, buffer)
            place += 1

    seconds = _median(read, rounds)
    return max(1, read_bytes // CHUNK_BYTES) * CHUNK_BYTES / seconds, reader.direct


def _median(work: Callable[[], object], rounds: int) -> float:
    work()  # touches memory and opens files
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
