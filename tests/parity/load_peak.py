"""Peak memory of loading models, over the bytes of their weights; each in a process of its own.

    python -m tests.parity.load_peak models/smollm2 models/SmolLM2-135M-Instruct.Q4_1.gguf

The peak is the highest resident size (VmHWM) less that before loading, mapped pages of the file included.
"""

import json
import subprocess
import sys
from pathlib import Path

from pallas_kernels.results import write_csv

MEASURE = """
import json, sys, jax
from flax import nnx
from mixattn import hf
def status(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return 1024 * int(line.split()[1])
jax.block_until_ready(jax.device_put(0))
before = status("VmRSS")
model, _ = hf.load(sys.argv[1])
weights = sum(x.nbytes for x in jax.tree.leaves(nnx.split(model)[1]))
peak = status("VmHWM") - before
ratio = round(peak / weights, 3)
print(json.dumps({"weights_bytes": weights, "peak_bytes": peak, "peak_over_weights": ratio}))
"""


def measured(model: str) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, model]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    models = sys.argv[1:]
    rows = [{"model": Path(model).name, **measured(model)} for model in models]
    command = f"python -m tests.parity.load_peak {' '.join(models)}"
    write_csv("results/load_peak.csv", rows, command=command, goal="peak_over_weights <= 1.15")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
