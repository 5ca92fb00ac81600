"""What checks at the border cost: digests of checkpoints, tokenizers without blanks, reading a corpus.

    NPROC=1 taskset -c 0 python -m train.bench_border --before=CHECKOUT_OF_AN_OLDER_COMMIT

Writes results/train_border.csv. Data preparation is timed in processes of both checkouts in turn, on the same
text:
the modules of the standard library that begin with a letter from a to h.
"""

import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags, logging

from mixattn.tools import cli
from pallas_kernels import results
from train import digests, tokens
from train.checkpoint import Checkpoints
from train.step import TrainState

_PREPARE = """
import json, sys, tempfile, time
from pathlib import Path
from train import tokens
with tempfile.TemporaryDirectory() as folder:
    began = time.process_time()
    done = tokens.write(sys.argv[1], Path(folder), vocab_size=1024)
    seconds = time.process_time() - began
    print(json.dumps({"cpu_s": seconds, "bytes": sum(p["bytes"] for p in done.manifest["parts"].values())}))
"""


def checkpoint_rows(mib: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Seconds of saving and loading a state of `mib` MiB, and of the digests in them."""
    key = jax.random.key(0)
    params = {f"w{i}": jax.random.normal(jax.random.fold_in(key, i), (1 << 20,)) for i in range(mib // 4)}
    state = TrainState(jnp.int32(0), params, {})
    shardings = jax.tree.map(lambda x: x.sharding, state)
    rows = []
    for number in range(rounds):
        checkpoints = Checkpoints(folder / str(number))
        began = time.perf_counter()
        checkpoints.save(1, state, {})
        checkpoints.wait()
        save_s = time.perf_counter() - began
        began = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(1, state, shardings))
        load_s = time.perf_counter() - began
        step = folder / str(number) / "1"
        write_s, check_s = _seconds(digests.write, step), _seconds(digests.check, step)
        checkpoints.close()
        for what, whole_s, part_s in (("save", save_s, write_s), ("load", load_s, check_s)):
            rows.append(
                {
                    "what": f"digests in a {what}",
                    "round": number,
                    "size": mib << 20,
                    "seconds": part_s,
                    "of_seconds": whole_s,
                    "ratio": part_s / whole_s,
                }
            )
    return rows


def tokenizer_row(size: int) -> dict[str, Any]:
    """Seconds of training a tokenizer on `size` characters of DNA without a blank."""
    text = "".join(random.Random(0).choices("ACGT", k=size))
    began = time.perf_counter()
    tokens.train_tokenizer(tokens.without_long_runs(text), 2048)
    return {
        "what": "tokenizer without a blank",
        "round": 0,
        "size": size,
        "seconds": time.perf_counter() - began,
    }


def preparation_rows(before: Path, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of preparing the same text here and in another checkout, in turn."""
    path, here = f"{sysconfig.get_path('stdlib')}/[a-h]*.py", Path(__file__).parent.parent
    rows = []
    for number in range(rounds):
        told = {}
        for name, root in (("before", before), ("now", here)):
            command = [sys.executable, "-c", _PREPARE, path]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
            told[name] = json.loads(done.stdout)
        now, then = told["now"], told["before"]
        rate = (now["bytes"] / now["cpu_s"]) / (then["bytes"] / then["cpu_s"])
        rows.append(
            {
                "what": "data preparation, rate of before",
                "round": number,
                "size": now["bytes"],
                "seconds": now["cpu_s"],
                "of_seconds": then["cpu_s"],
                "ratio": rate,
            }
        )
    return rows


def _seconds(work: Any, folder: Path) -> float:
    began = time.perf_counter()
    work(folder)
    return time.perf_counter() - began


def main() -> None:
    given = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        rows = checkpoint_rows(given.mib, given.rounds, Path(folder))
    rows.append(tokenizer_row(given.characters))
    if given.before:
        rows += preparation_rows(Path(given.before), given.rounds)
    columns = ("what", "round", "size", "seconds", "of_seconds", "ratio")
    rows = [
        {c: round(v, 5) if isinstance(v := row.get(c, ""), float) else v for c in columns} for row in rows
    ]
    for row in rows:
        print(", ".join(f"{k} {v}" for k, v in row.items() if v != ""))
    results.write_csv(Path(given.out), rows, before=given.before_commit)


if __name__ == "__main__":
    flags.DEFINE_string("before", "", "Checkout of an older commit, to compare data preparation with.")
    flags.DEFINE_string("before_commit", "", "That commit, for the header of the CSV.")
    flags.DEFINE_integer("mib", 256, "Size of the checkpoint in MiB.", lower_bound=4)
    flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=1)
    flags.DEFINE_integer("characters", 3_000_000, "Length of the text without a blank.", lower_bound=1)
    flags.DEFINE_string("out", "results/train_border.csv", "The CSV to write.")
    cli.run(main)
