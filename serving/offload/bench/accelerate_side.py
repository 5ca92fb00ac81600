"""The other side of the comparison: transformers with accelerate's disk offload. Runs where torch is.

    python accelerate_side.py CHECKPOINT FOLDER BATCH

Answers each line on standard input with the seconds of one decode step; the first answer says it is ready.
FOLDER gets accelerate's own copy of the weights. Before each step the page cache drops those files: what was
just written is only dropped once it is on the disk, and `mincore` says how much is still there.
"""

import ctypes
import gc
import json
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import disk_offload
from transformers import AutoModelForCausalLM

CONTEXT_TOK = 64


def files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def drop(paths: list[Path]) -> None:
    """Makes the page cache forget the files, which nobody maps at this time."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def cached_share(paths: list[Path]) -> float:
    """Share of the files' pages that are in the page cache."""
    libc, here, every = ctypes.CDLL(None, use_errno=True), 0, 0
    for path in paths:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            state = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            view = np.frombuffer(mapped, np.uint8)
            address = view.ctypes.data
            if libc.mincore(
                ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_void_p(state.ctypes.data)
            ):
                raise OSError(ctypes.get_errno(), "mincore")
            del view
            here, every = here + int((state & 1).sum()), every + len(state)
    return here / max(1, every)


def main() -> None:
    checkpoint, folder, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, low_cpu_mem_usage=True)
    model.eval()
    disk_offload(model, str(folder))
    gc.collect()
    weights = files(folder, checkpoint)
    ids = torch.randint(1, 1000, (batch, CONTEXT_TOK), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
        print(json.dumps({"wall_s": 0.0, "cpu_s": 0.0, "cached": 0.0}), flush=True)
        for _ in sys.stdin:
            drop(weights)
            cached = cached_share(weights)
            cpu, wall = time.process_time(), time.perf_counter()
            model(ids[:, :1], past_key_values=past, use_cache=True)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            past.crop(-1)
            print(json.dumps({"wall_s": wall, "cpu_s": cpu, "cached": cached}), flush=True)


main()
