"""The other side of the comparison: transformers with accelerate's disk offload. Runs where torch is.

    python accelerate_side.py CHECKPOINT FOLDER BATCH

Answers each line on standard input with the seconds of one decode step; the first answer says it is ready.
FOLDER gets accelerate's own copy of the weights. Before each step the page cache drops those files.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import disk_offload
from transformers import AutoModelForCausalLM

CONTEXT_TOK = 64


def drop(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    checkpoint, folder, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, low_cpu_mem_usage=True)
    model.eval()
    disk_offload(model, str(folder))
    gc.collect()
    ids = torch.randint(1, 1000, (batch, CONTEXT_TOK), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
        print(json.dumps({"wall_s": 0.0, "cpu_s": 0.0}), flush=True)
        for _ in sys.stdin:
            drop(folder)
            drop(checkpoint)
            cpu, wall = time.process_time(), time.perf_counter()
            model(ids[:, :1], past_key_values=past, use_cache=True)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            past.crop(-1)
            print(json.dumps({"wall_s": wall, "cpu_s": cpu}), flush=True)


main()
