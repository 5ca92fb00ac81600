"""The part `real` of the benchmarks: which cases are missing, and the files that the sides load."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from serving.bench import Row, Size
from serving.bench.real import measuring, table
from serving.bench.real.cases import CASES, text
from serving.bench.real.sides import SIDES, RealSide

MODEL = Path("models/smollm2")
GGUF = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")
WORK = Path("build/real")

_PEERS = flags.DEFINE_string("real_peers", ".venv-real", "Folder of the environments of `make real-peers`.")
_KEPT = flags.DEFINE_string("real_kept", str(WORK / "measured.jsonl"), "File of measurements; it only grows.")
_CASES = flags.DEFINE_list("real_cases", list(CASES), "Cases of part `real`.")
_CORES = flags.DEFINE_list("real_cores", ["2", "1"], "Numbers of cores to pin the sides to.")
_SIDES = flags.DEFINE_list("real_sides", [], "Words in the names of sides, e.g. ours,OpenVINO; default: all.")
_SECONDS = flags.DEFINE_float("real_seconds", 1e9, "Start no round after so many seconds.", lower_bound=1)


def real(size: Size) -> Iterator[Row]:
    """Measures what is missing, then yields the table of all there is."""
    began_s = time.monotonic()
    peers, kept = Path(_PEERS.value), measuring.Measurements(Path(_KEPT.value))
    sides = _sides(peers)
    if unknown := [name for name in _CASES.value if name not in CASES]:
        raise ValueError(f"--real_cases names {unknown[0]}; there are {', '.join(CASES)}")
    if not all(cores in ("1", "2") for cores in _CORES.value):
        raise ValueError(f"--real_cores={','.join(_CORES.value)}: the table has 1 and 2")
    files, ids = _files(), _ids()

    def enough() -> bool:
        return time.monotonic() - began_s > _SECONDS.value

    for cores in map(int, _CORES.value):
        for name in _CASES.value:
            for group in _groups(sides, CASES[name].requests):
                if enough():
                    break
                if all(len(kept.rounds(s.name, name, cores)) >= size.repeats for s in group):
                    continue
                _say(f"{cores} core(s), {CASES[name].describe()}")
                measuring.measure(
                    CASES[name],
                    cores,
                    group,
                    kept,
                    rounds=size.repeats,
                    ids=ids,
                    peers=peers,
                    files=files,
                    enough=enough,
                    say=_say,
                )
    yield from table.table(kept)


def _sides(peers: Path) -> list[RealSide]:
    """The sides asked for whose environment is there; the others are named."""
    words = [word.strip().lower() for word in _SIDES.value]
    asked = [s for s in SIDES.values() if not words or any(word in s.name.lower() for word in words)]
    if not asked:
        raise ValueError(f"--real_sides={','.join(_SIDES.value)} names none of {'; '.join(SIDES)}")
    for side in asked:
        if not side.installed(peers):
            _say(f"{side.name} is left out: {side.python(peers)} is missing (make real-peers)")
    return [side for side in asked if side.installed(peers)]


def _groups(sides: list[RealSide], requests: int) -> list[list[RealSide]]:
    """Sides that take turns: those that start fast, and those that start slowly beside ours."""
    able = [side for side in sides if requests <= side.most]
    fast = [side for side in able if not side.slow_start]
    slow = [side for side in able if side.slow_start]
    return [group for group in (fast, slow) if group]


def _files() -> dict[str, str]:
    """What the sides load; a Hugging Face copy of the model is written where it is missing."""
    from mixattn import hf

    if not (MODEL / "config.json").exists() or not GGUF.exists():
        raise ValueError(f"{MODEL} or {GGUF} is missing; `make model` fetches both")
    llama = WORK / "llama"
    if not (llama / "config.json").exists():
        _say(f"writing {llama}")
        model, _ = hf.load(MODEL)
        hf.save(model, llama, architecture="llama", companions=hf.companions(MODEL))
    programs = WORK / "programs"
    return {"folder": str(MODEL), "gguf": str(GGUF), "llama": str(llama), "programs": str(programs)}


def _ids() -> list[int]:
    from mixattn import hf

    return hf.encode(hf.load_tokenizer(MODEL), text())


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
