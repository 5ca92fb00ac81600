"""Measures one case: starts its sides, asks them in turn, and appends each answer to a file at once."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from mixattn.tools.baseline_process import QueryFn, peer
from serving.bench.real.cases import Case, prompts
from serving.bench.real.sides import RealSide

WARM_TOK = 4

type Measurement = dict[str, Any]


class Measurements:
    """All measurements so far, in a file of JSON lines that only grows."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[Measurement] = [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, row: Measurement) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rounds(self, side: str, case: str, cores: int) -> list[Measurement]:
        """Of one side in one case, whole rounds only."""
        key = {"side": side, "case": case, "cores": cores, "kind": "round"}
        return [row for row in self.rows if key.items() <= row.items()]


def figures(case: Case, answer: Mapping[str, Any]) -> Measurement:
    """First token, decode step and throughput of one answer.

    The decode step is the time between two tokens of a row while all rows decode: from the moment when every
    request has its first token to the first end of a request.
    """
    times: Sequence[Sequence[float]] = answer["times"]
    all_began, first_end = max(t[0] for t in times), min(t[-1] for t in times)
    counted = [sum(all_began < s <= first_end for s in t) for t in times]
    steps = sum(counted) / len(times)
    return {
        "first_s": median(t[0] for t in times),
        "step_s": (first_end - all_began) / steps if steps else None,
        "tok_per_s": sum(map(len, times)) / max(t[-1] for t in times),
    }


def measure(
    case: Case,
    cores: int,
    sides: Sequence[RealSide],
    kept: Measurements,
    *,
    rounds: int,
    ids: Sequence[int],
    peers: Path,
    files: Mapping[str, str],
    enough: Callable[[], bool],
    say: Callable[[str], None],
) -> None:
    """Rounds that are missing, in turn, until `enough`."""
    os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"] = str(cores)
    with ExitStack() as stack:
        asking = dict(_started(stack, case, cores, sides, kept, peers, files, ids, say))
        for number in range(
            min(len(kept.rounds(s, case.name, cores)) for s in asking) if asking else 0, rounds
        ):
            if enough():
                say("time is up; the same command goes on")
                return
            for side, ask in asking.items():
                answer = ask(prompts=prompts(case, number, ids), new=case.new_tok)
                about = {"side": side, "case": case.name, "cores": cores}
                if "error" in answer:
                    kept.add(about | {"kind": "error", "why": answer["error"]})
                    raise ValueError(f"{side} fails at {case.describe()}: {answer['error']}")
                found = figures(case, answer) | {"outputs": answer["outputs"][0][:16]}
                kept.add(about | {"kind": "round", "round": number} | found)
                say(f"{side}: {found['tok_per_s']:.1f} tokens/s, first {found['first_s']:.3f} s")


def _started(
    stack: ExitStack,
    case: Case,
    cores: int,
    sides: Sequence[RealSide],
    kept: Measurements,
    peers: Path,
    files: Mapping[str, str],
    ids: Sequence[int],
    say: Callable[[str], None],
) -> Iterator[tuple[str, QueryFn]]:
    """Starts each side, warms it up, and notes how long it took until it was ready."""
    for side in sides:
        began_s = time.perf_counter()
        ask = stack.enter_context(peer(side.script, side.command(peers, cores)))
        answer = ask(load=side.asked(case, cores, files))
        about = {"side": side.name, "case": case.name, "cores": cores}
        if "error" in answer:
            kept.add(about | {"kind": "error", "why": answer["error"]})
            say(f"{side.name} cannot be loaded: {answer['error']}")
            continue
        seconds = time.perf_counter() - began_s
        kept.add(about | {"kind": "start", "start_s": seconds, "versions": answer["versions"]})
        say(f"{side.name}: ready after {seconds:.1f} s ({answer['versions']})")
        ask(prompts=prompts(case, 63, ids), new=WARM_TOK)
        yield side.name, ask
