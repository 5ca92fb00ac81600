"""How time and memory grow: many rows, many waiting clients, many clients that have gone; against an older
checkout.

Every case is a fresh process in either checkout, both in turns, so that only their ratio is compared:

    rows        20,000 requests of 200 clients under vtc, 40 a second, which is too many: run and figures
    light       100,000 such requests, 4 a second, which is few
    waiting     3,000 clients that wait with one request each; here also 20,000
    gone        50,000 clients of one request each: entries that router and predictor keep
    damping     480 requests of 800 to 1,500 output tokens in 8,000 tokens of memory, optimistic: preemptions
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pallas_kernels import results

NAME = "scale.csv"
ROOT = Path(__file__).resolve().parents[3]
HEAD = """
import json, random, resource, sys, time
from serving import fair
from serving.request import RequestInfo
from serving.sim.experiment import FairnessExperiment, PolicyRun, SimulatedEngine, run
from serving.sim.synthetic_tokens import SyntheticTokens
from serving.sim.workload import SimulatedRequest
rng = random.Random(0)
def req(i, client, at_s, prompt, output):
    return SimulatedRequest(f"r{i}", client, at_s, SyntheticTokens([(i, prompt)]), prompt, output, output)
def measured(requests, server, policy="vtc"):
    experiment = FairnessExperiment(id="x", requests=lambda seed: requests, server=server)
    experiment.demand_s = max(r.arrival_s for r in requests) + 90
    start = time.process_time()
    row = run(experiment, PolicyRun(policy), requests=requests).row()
    return {"cpu_s": time.process_time() - start, "preempted": row["preempted"]}
"""
TAIL = """
found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(found))
"""
_ROWS = """
requests = [
    req(i, f"c{rng.randrange(200):03}", i / RATE, rng.randint(20, 120), rng.randint(5, 60)) for i in range(N)
]
found = measured(requests, SimulatedEngine(admit_every=10))
"""
CASES = {
    "rows": _ROWS.replace("RATE", "40"),
    "light": _ROWS.replace("RATE", "4"),
    "waiting": """
requests = [req(i, f"c{i}", 0.0, 20, 5) for i in range(N)]
found = measured(requests, SimulatedEngine(admit_every=10))
""",
    "gone": """
router, policy = fair.make("d2lpm"), fair.make("vtc_predict")
for worker in range(4):
    router.join(worker)
start = time.process_time()
for i in range(50_000):
    info = RequestInfo(f"r{i}", f"c{i}", i, 20, 5, 5)
    router.dispatch(info, [(i, 20)])
    router.ended(info.id, 5)
    policy.arrive(info, 0.0)
    policy.admit(policy.pick(0.0), extend_tok=20, hit_tok=0)
    policy.decoded({info.id: 5})
    policy.finish(info.id)
found = {"cpu_s": time.process_time() - start}
found |= {"kept_by_d2lpm": len(router.spent) + len(router.refills)}
found |= {"kept_by_mean": len(policy.predictor.recent)}
""",
    "damping": """
requests = [req(i, f"c{i % 4}", 0.0, 50, rng.randint(800, 1500)) for i in range(480)]
found = measured(requests, SimulatedEngine(memory_tok=8000, admission="optimistic"))
""",
}
SIZES = {"rows": [20_000], "light": [100_000], "waiting": [3000, 20_000], "gone": [0], "damping": [0]}
NEW_ONLY = {("waiting", 20_000)}  # the older one would need some 40 GB


def run_suite(out: Path, *, against: Path | None, only: Sequence[str] = (), rounds: int = 2) -> None:
    """Writes the table, a case at a time; without an older checkout, of this one alone.

    Raises:
      ValueError: an unknown case, or `against` is no checkout.
    """
    if unknown := [name for name in only if name not in CASES]:
        raise ValueError(f"unknown case {', '.join(unknown)}; known: {', '.join(CASES)}")
    if against is not None and not (against / "serving" / "sim").is_dir():
        raise ValueError(f"--against={against} is no checkout: it has no folder serving/sim")
    rows = []
    for case in only or CASES:
        for size in SIZES[case]:
            rows += list(_rows(case, size, against, rounds))
    out.mkdir(parents=True, exist_ok=True)
    about = (
        "least CPU seconds and peak memory of fresh processes, both checkouts in turns; ratio: now / before"
    )
    results.write_csv(out / NAME, rows, about=about, device=results.processor())


def _rows(case: str, size: int, against: Path | None, rounds: int) -> Iterator[dict[str, Any]]:
    console = Console(stderr=True)
    old: list[dict[str, float]] = []
    new: list[dict[str, float]] = []
    for _ in range(rounds):
        new.append(_once(case, size, ROOT))
        if against is not None and (case, size) not in NEW_ONLY:
            old.append(_once(case, size, against))
    name = f"{case} {size:,}" if size else case
    for figure in new[0]:
        now = min(found[figure] for found in new)
        before = min((found[figure] for found in old), default=None)
        ratio = "" if not before else round(now / before, 3)
        console.print(f"{name:15} {figure:14} before {before}, now {now}, ratio {ratio}")
        yield {
            "case": name,
            "figure": figure,
            "before": "" if before is None else round(before, 2),
            "now": round(now, 2),
            "ratio": ratio,
        }


def _once(case: str, size: int, checkout: Path) -> dict[str, float]:
    code = HEAD + CASES[case].replace("N)", f"{size})") + TAIL
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"case {case} failed in {checkout}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found
