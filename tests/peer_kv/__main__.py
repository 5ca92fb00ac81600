"""Our keep-sets beside kvpress' on the same weights and texts: `make peer-kv`.

    python -m tests.peer_kv --peer=.venv-peer-kv/bin/python --model=models/smollm2 --out=results/peer_kv.csv

For each method: the share of keys that both keep, the same text's nats after the prompt was cut to the same
number of keys, seconds of the prompt and the peak memory of the process. Fails unless the keep-sets agree but
for near-ties. kvpress cuts a prompt and then lets the cache grow; so do we here (`when="prompt"`).
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from mixattn import hf
from mixattn.cache import Kept
from mixattn.evals.longcontext.checkpoint import CheckpointModel
from mixattn.forced import log_likelihoods
from mixattn.generation import cache_kind, read_prompts
from mixattn.keep import Keep
from mixattn.tools import cli
from pallas_kernels import results

flags.DEFINE_string("peer", ".venv-peer-kv/bin/python", "Python with torch and kvpress.")
flags.DEFINE_string("model", "models/smollm2", "A checkpoint directory.")
flags.DEFINE_string("out", "results/peer_kv.csv", "The table.")
flags.DEFINE_string("build", "build/peer-kv", "Folder of the files that both sides exchange.")
flags.DEFINE_integer("texts", 4, "Texts.", lower_bound=1)
flags.DEFINE_integer("prompt", 384, "Tokens of each prompt.", lower_bound=64)
flags.DEFINE_integer("rest", 64, "Tokens scored behind it.", lower_bound=1)
flags.DEFINE_float("share", 0.25, "Share of the prompt that is kept.", lower_bound=0.1, upper_bound=1)
flags.DEFINE_string("method", "", "Only our side of this method, into --out as .npz (a process of its own).")
FLAGS = flags.FLAGS

# How our scorers are asked for what kvpress' methods do.
OURS = {
    "h2o_mean": {"recent": 1},
    "snapkv": {"window": 32, "pool": 5, "recent": 32},
    "tova": {"recent": 1},
    "streaming": {"sinks": 4, "recent": 1},
    "knorm": {"recent": 1},
    "keydiff": {"recent": 1},
    "expected": {"sinks": 4, "recent": 1},
}
# kvpress does not protect the newest key in these, so that one key of a head may differ.
UNPROTECTED = ("h2o_mean", "knorm", "keydiff", "expected")
AGREE = 0.995


def main() -> None:
    """Both sides, the comparison, the table."""
    if FLAGS.method:
        _our_side(FLAGS.method, Path(FLAGS.out))
        return
    build = Path(FLAGS.build)
    build.mkdir(parents=True, exist_ok=True)
    model, _ = hf.load(FLAGS.model)
    hf.save(model, build / "model", architecture="llama")
    texts, prompt = CheckpointModel(Path(FLAGS.model)), FLAGS.prompt
    ids_BT = np.array([texts.text(prompt + FLAGS.rest, i) for i in range(FLAGS.texts)], np.int32)
    kept = Keep(budget=FLAGS.share).total(prompt, 0)
    np.savez(build / "texts.npz", ids_BT=ids_BT, prompt=prompt, kept=kept)
    rows = [_compared(method, build, prompt, kept) for method in OURS]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    results.write_csv(FLAGS.out, rows, command=" ".join(("python -m tests.peer_kv", *sys.argv[1:])))
    if poor := [row["method"] for row in rows if row["same_keys"] < AGREE]:
        raise ValueError(
            f"keep-sets of {', '.join(poor)} agree with kvpress' on less than {AGREE:.1%} of the keys"
        )


def _compared(method: str, build: Path, prompt: int, kept: int) -> dict[str, object]:
    ours, theirs = build / f"{method}.ours.npz", build / f"{method}.kvpress.npz"
    side = str(Path(__file__).with_name("kvpress_side.py"))
    them = [FLAGS.peer, side, str(build / "model"), str(build / "texts.npz"), str(theirs), method]
    subprocess.run(them, check=True, env=os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"})
    own = [sys.executable, "-m", "tests.peer_kv", f"--method={method}", f"--out={ours}"]
    own += [f"--model={FLAGS.model}", f"--build={build}"]
    subprocess.run(own, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    we, they = np.load(ours), np.load(theirs)
    shared = [
        np.intersect1d(a, b).size
        for a, b in zip(we["kept_BLKS"].reshape(-1, kept), they["kept_BLKS"].reshape(-1, kept), strict=True)
    ]
    # Where the newest key is protected by us alone, one key of each head may differ.
    allowed = kept - (method in UNPROTECTED)
    return {
        "method": method,
        "prompt": prompt,
        "kept": kept,
        "same_keys": round(float(np.mean(np.minimum(shared, allowed)) / allowed), 5),
        "same_sets": round(float(np.mean(np.asarray(shared) >= allowed)), 4),
        "our_nats": round(float(we["nats_BS"].mean()), 4),
        "kvpress_nats": round(float(they["nats_BS"].mean()), 4),
        "our_prefill_s": round(float(np.median(we["prefill_s"])), 3),
        "kvpress_prefill_s": round(float(np.median(they["prefill_s"])), 3),
        "our_peak_MB": round(int(we["peak_bytes"]) / 1e6),
        "kvpress_peak_MB": round(int(they["peak_bytes"]) / 1e6),
    }


def _our_side(method: str, out: Path) -> None:
    given = np.load(Path(FLAGS.build) / "texts.npz")
    ids_BT, prompt, kept = given["ids_BT"], int(given["prompt"]), int(given["kept"])
    model, config = hf.load(FLAGS.model)
    keep = Keep(method, kept, when="prompt", **OURS[method])
    graphdef, params = nnx.split(model)
    maker = cache_kind(Kept, keep, config, [prompt], ids_BT.shape[1] - prompt)

    @nnx.jit
    def cut(params: nnx.State, tokens_1T: jnp.ndarray) -> list[jnp.ndarray]:
        count_1 = jnp.full(1, tokens_1T.shape[1])
        model = nnx.merge(graphdef, params)
        _, cache = read_prompts(model, tokens_1T, count_1, cache=maker, capacity=prompt)
        return [slab.position_BKR[0] for slab in cache.slabs.values()]

    keeps, seconds = [], []
    for row in ids_BT:
        tokens = jnp.asarray(row[None, :prompt])
        cut(params, tokens)[0].block_until_ready()
        started = time.perf_counter()
        positions = [np.asarray(position) for position in cut(params, tokens)]
        seconds.append(time.perf_counter() - started)
        keeps.append(np.stack([[np.sort(head[head >= 0]) for head in layer] for layer in positions]))
    nats_BS = -log_likelihoods(model, ids_BT.tolist(), prompt, keep=keep)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(out, kept_BLKS=np.stack(keeps), nats_BS=nats_BS, prefill_s=seconds, peak_bytes=peak)


if __name__ == "__main__":
    cli.run(main)
