"""Measures the speed of reading and ranking votes beside other programs, in CPU seconds on one core.

    python -m mixattn.evals arena bench --csv=results/arena/speed.csv
    python -m mixattn.evals arena bench --votes=100000

Other programs are measured where they are installed (pip install 'mixattn[oracles]'); arena-rank, which needs
another version of jax, by a Python of its own: --peer=DIR/bin/python. "FastChat's algorithm" is our own
program of it: unique rows of both models and outcome, scipy's L-BFGS-B from 0 with gtol 1e-6, and numpy's
`add.at`.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats import bootstrap
from mixattn.evals.arena.stats.bradley_terry import fit
from mixattn.evals.arena.stats.counts import SCORE, Counts, count
from mixattn.evals.arena.stats.reading import read_votes
from mixattn.evals.arena.stats.synthetic import SyntheticConfig, json_lines, simulate
from mixattn.evals.arena.stats.votes import Votes
from pallas_kernels.results import processor, write_csv

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    flags.DEFINE_integer("votes", 1_000_000, "Number of votes.", 1000)
    flags.DEFINE_integer("models", 100, "Number of models.", 2)
    flags.DEFINE_integer("resamples", 1000, "Bootstrap resamples.", 1)
    flags.DEFINE_string("peer", None, "A Python with arena-rank, to measure it too.")
    flags.DEFINE_string("csv", None, "File for the table.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    votes, _ = simulate(SyntheticConfig(models=FLAGS.models, votes=FLAGS.votes, voters=20_000))
    rows: list[dict[str, Any]] = []

    def add(what: str, program: str, run: Callable[[], Any], repeats: int = 3) -> None:
        taken = [_cpu_s(run) for _ in range(repeats)]
        rows.append({"what": what, "program": program, "cpu_s": round(min(taken), 4)})
        print(f"{what}, {program}: {min(taken):.3f} s", file=sys.stderr)

    counts = count(votes)
    add("fit and sandwich", "ours", lambda: fit(count(votes)).covariance)
    add("fit", "FastChat's algorithm", lambda: _lbfgs(_unique(votes)), 1)
    _others(votes, add)
    add(f"{FLAGS.resamples} resamples", "ours", lambda: _resample(counts))
    add(f"{FLAGS.resamples} resamples", "FastChat's algorithm", lambda: _loop(_unique(votes)), 1)
    _files(votes, rows, add)
    if FLAGS.csv:
        cpu = f"{processor()}, 1 of {os.cpu_count()} cores"
        write_csv(
            FLAGS.csv,
            rows,
            votes=FLAGS.votes,
            models=FLAGS.models,
            data="simulated votes",
            device=cpu,
            seed=0,
        )
    if FLAGS.json:
        command_line.print_json({"votes": FLAGS.votes, "rows": rows})
    else:
        print(command_line.table(list(rows[0]), [[str(x) for x in row.values()] for row in rows]))


def _cpu_s(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def _unique(votes: Votes) -> Counts:
    """Unique rows by sorting, as data frames do it."""
    rows = np.stack([votes.first, votes.second, votes.outcome], axis=1)
    unique, number = np.unique(rows, axis=0, return_counts=True)
    table = np.zeros((len(unique), 3))
    table[np.arange(len(unique)), unique[:, 2]] = number
    return Counts(len(votes.models), unique[:, 0], unique[:, 1], table, table, table)


def _lbfgs(counts: Counts) -> np.ndarray:
    win, total = counts.weight @ SCORE, counts.weight.sum(axis=1)
    m, pairs = counts.n_models, np.stack([counts.low, counts.high], axis=1)

    def loss(xi: np.ndarray) -> tuple[float, np.ndarray]:
        d = xi[counts.low] - xi[counts.high]
        residual = total * expit(d) - win
        slope = np.zeros(m)
        np.add.at(slope, pairs, residual[:, None] * [1.0, -1.0])
        return -float(win @ log_expit(d) + (total - win) @ log_expit(-d)), slope

    options = {"gtol": 1e-6, "maxiter": 100}
    return minimize(loss, np.zeros(m), jac=True, method="L-BFGS-B", options=options).x


def _resample(counts: Counts) -> np.ndarray:
    return bootstrap.of_votes(counts, fit(counts), FLAGS.resamples, np.random.default_rng(0))


def _loop(counts: Counts) -> None:
    rng, number = np.random.default_rng(0), counts.votes.ravel()
    for _ in range(FLAGS.resamples):
        drawn = rng.multinomial(int(number.sum()), number / number.sum()).astype(float).reshape(-1, 3)
        _lbfgs(Counts(counts.n_models, counts.low, counts.high, drawn, drawn, drawn))


def _others(votes: Votes, add: Callable[..., None]) -> None:
    try:
        import choix

        def dense() -> None:
            score = votes.outcome / 2
            wins = np.zeros((len(votes.models),) * 2)
            np.add.at(wins, (votes.first, votes.second), score)
            np.add.at(wins, (votes.second, votes.first), 1 - score)
            choix.ilsr_pairwise_dense(wins, alpha=0.0)

        add("fit", "choix ilsr_pairwise_dense", dense, 1)
    except ImportError:
        print("choix is not installed: not measured", file=sys.stderr)
    try:
        import evalica

        names = np.array(votes.models, dtype=object)
        first, second = names[votes.first].tolist(), names[votes.second].tolist()
        label = [evalica.Winner.Y, evalica.Winner.Draw, evalica.Winner.X]
        winners = [label[o] for o in votes.outcome.tolist()]
        add("fit", "evalica bradley_terry", lambda: evalica.bradley_terry(first, second, winners), 1)
    except ImportError:
        print("evalica is not installed: not measured", file=sys.stderr)


def _files(votes: Votes, rows: list[dict[str, Any]], add: Callable[..., None]) -> None:
    import pyarrow.json
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as folder:
        lines, parquet = Path(folder) / "votes.jsonl", Path(folder) / "votes.parquet"
        with lines.open("w", encoding="utf-8") as out:
            out.writelines(json_lines(votes))
        pyarrow.parquet.write_table(pyarrow.json.read_json(lines), parquet)
        if FLAGS.peer:
            rows += _peer(parquet)
        add("read parquet", "ours", lambda: read_votes(parquet))
        add("read JSON lines", "ours", lambda: read_votes(lines))
        add("read JSON lines", "pyarrow.json", lambda: pyarrow.json.read_json(lines))
        for file in (parquet, lines):
            command = [sys.executable, "-m", "mixattn.evals", "arena", "fit", f"--votes={file}", "--json"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rows.append(
                {"what": f"whole command on {file.suffix}", "program": "ours", "cpu_s": round(cpu_s, 3)}
            )


def _peer(votes: Path) -> list[dict[str, Any]]:
    """What `bench_peer.py` measures under another Python.

    Raises:
      ValueError: it does not run there.
    """
    folder = Path(__file__).parent  # on that Python's path by itself: our package need not be installed there
    run = f"import sys; sys.path.insert(0, {str(folder)!r}); import bench_peer; bench_peer.main()"
    done = subprocess.run([FLAGS.peer, "-c", run, votes], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"--peer={FLAGS.peer} does not run arena-rank: {done.stderr.strip()[-300:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))
