"""Serves a trained checkpoint offline: either several clients under several policies, with figures in
WORKDIR/serve, or the requests of a file.

    python -m serving.main --config=configs/demo.py --workdir=runs/demo
    python -m serving.main --config=configs/demo.py --workdir=runs/demo --requests=a.jsonl --out=b.jsonl

Reads WORKDIR/model and WORKDIR/heldout.jsonl, which `python -m train.main` writes. Writes
serve/POLICY.events.jsonl (the scheduling log) and serve/summary.json (the input of `serving.offline.report`).
With --requests it answers the lines of that file instead (fields: see `serving.offline.requests_file`) and
writes one line per answer; the same command resumes a run that was stopped. --model names any Hugging Face
directory instead of WORKDIR/model.

Programs are compiled at the start and listed with their compile times. JAX_COMPILATION_CACHE_DIR=DIR and
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 in the environment keep them between runs.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging

from mixattn.tools import cli, files
from mixattn.tools.progress import ProgressLines
from serving.config import EngineConfig
from serving.offline import requests_file
from serving.offline.answers import Answers
from serving.offline.clients import Arrivals
from serving.offline.console import RequestLine, show_summary
from serving.offline.experiment import Serve
from serving.request import Request

if TYPE_CHECKING:  # jax is loaded only after flags and files have been checked
    from tokenizers import Tokenizer

    from mixattn.model import Transformer
    from serving.offline.compare import PolicyReport

_JSON = flags.DEFINE_bool("json", False, "Print the table as JSON instead.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training run.")
_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory to serve instead of WORKDIR/model.")
_REQUESTS = flags.DEFINE_string("requests", None, "Answer the requests of this file of JSON lines.")
_OUT = flags.DEFINE_string("out", None, "File for the answers to --requests; an existing one is resumed.")


def main() -> None:
    serve = getattr(cli.config(), "serve", None)
    if serve is None:
        raise ValueError("--config has no field `serve`; name one that serves, e.g. configs/demo.py")
    if bool(_REQUESTS.value) != bool(_OUT.value):
        raise ValueError(f"--requests={_REQUESTS.value} and --out={_OUT.value} go together")
    if _REQUESTS.value:
        answer(serve.engine)
        return
    if not _WORKDIR.value:
        raise ValueError("--workdir is missing; name the folder of a training run, e.g. --workdir=runs/demo")
    workdir = Path(_WORKDIR.value)
    documents = read_documents(workdir / "heldout.jsonl")
    summary = compare_policies(serve, workdir, documents)
    files.write_json(workdir / "serve" / "summary.json", summary)
    if _JSON.value:
        print(json.dumps({k: v["table"] for k, v in summary["policies"].items()}))
    else:
        show_summary(summary)


def answer(config: EngineConfig) -> None:
    """Answers the requests of --requests that --out does not hold yet."""
    folder = Path(_MODEL.value) if _MODEL.value else Path(_WORKDIR.value or ".") / "model"
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no model; name a training run by --workdir or a folder by --model")
    if not Path(_REQUESTS.value).exists():
        raise ValueError(f"{_REQUESTS.value} does not exist")
    from mixattn import hf

    tokenizer = hf.load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
    encode = None if tokenizer is None else (lambda text: tokenizer.encode(text).ids)
    # The checkpoint's end-of-text ids stop a request, unless the config names other ids.
    config = dataclasses.replace(config, eos_ids=config.eos_ids or tuple(hf.stop_ids(folder)))
    requests = requests_file.read(Path(_REQUESTS.value), encode)
    answers = Answers(Path(_OUT.value), requests)
    missing = answers.missing
    try:
        stats = _answer(config, hf.load(folder)[0], tokenizer, missing, answers) if missing else {}
    finally:
        answers.close()
    figures = {"answered": len(missing), "kept": len(requests) - len(missing), **stats}
    print(json.dumps(figures) if _JSON.value else ", ".join(f"{k} {v}" for k, v in figures.items()))


def _answer(
    config: EngineConfig,
    model: "Transformer",
    tokenizer: "Tokenizer | None",
    requests: Sequence[Request],
    answers: Answers,
) -> dict[str, Any]:
    """Writes the outputs of `requests` to `answers`; returns figures of the engine."""
    from serving.engine.engine import Engine

    with ProgressLines() as lines:
        line = RequestLine(lines, "answer", sum(r.sampling.n for r in requests))
        decode = None if tokenizer is None else tokenizer.decode
        engine = Engine(model, config, report=line.compiled, decode=decode)
        for request in requests:
            engine.check(request)
        queue = iter(requests)
        while True:
            # Four times the slots: enough for the policy to choose from, and the queue stays short.
            for request in itertools.islice(queue, max(0, 4 * config.max_slots - len(engine.streams))):
                engine.submit(request)
            if not engine.live:
                break
            for delta in engine.step():
                line.delta(delta)
                if delta.output is not None:
                    answers.write(delta.output)
    stats = engine.stats()
    return {
        "output_tok": stats.output_tok,
        "hit_rate": round(stats.hit_rate, 3),
        "occupancy": round(stats.occupancy, 3),
        "preemptions": stats.preemptions,
        "host_s": round(stats.host_s, 3),
        "device_s": round(stats.device_s, 3),
    }


def compare_policies(serve: Serve, workdir: Path, documents: list[list[int]]) -> dict[str, Any]:
    """Serves the workload under every policy; returns the contents of summary.json."""
    from mixattn import hf
    from serving.offline import compare

    model, config = hf.load(workdir / "model")
    tokenizer = hf.load_tokenizer(workdir / "model")
    (workdir / "serve").mkdir(exist_ok=True)
    summary: dict[str, Any] = {"policies": {}, "memory": compare.kv_memory(config, [256, 1024, 4096])}
    programs = None  # compiled once, shared by all policies
    with ProgressLines() as lines:
        for policy in serve.policies:
            line = RequestLine(lines, f"serve {policy}", serve.workload.requests)
            run = compare.run(model, serve, policy, documents, line.delta, line.compiled, programs)
            programs = run.programs
            log = "".join(json.dumps(event) + "\n" for event in run.events)
            files.write_text(workdir / "serve" / f"{policy}.events.jsonl", log)
            kept = {"table": run.table, "curves": run.curves, "gap_curve": run.gap_curve}
            summary["policies"][policy] = kept
            summary.setdefault("completions", completions(run, serve, documents, tokenizer))
    return summary


def completions(
    run: "PolicyReport", serve: Serve, documents: list[list[int]], tokenizer: "Tokenizer"
) -> list[dict[str, str]]:
    """A few outputs as text, each with the last 48 tokens of its prompt."""
    arrivals = Arrivals(serve.workload, documents)
    prompts = {r.id: r.prompt_ids for r in arrivals.due(0, idle=True)}
    kept = [o for o in run.outputs if o.id in prompts][: serve.completions]
    return [
        {
            "client": o.client,
            "prompt": tokenizer.decode(list(prompts[o.id])[-48:]),
            "output": tokenizer.decode(o.output_ids),
        }
        for o in kept
    ]


def read_documents(path: Path) -> list[list[int]]:
    """Held-out documents, one JSON object with "ids" per line.

    Raises:
      ValueError: the file is missing, empty, or a line (named by number) is not such an object.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; run python -m train.main with this --workdir first")
    documents = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                ids = json.loads(line)["ids"]
                if not all(type(i) is int for i in ids):
                    raise TypeError("ids are not integers")
            except (ValueError, KeyError, TypeError) as why:
                raise ValueError(f"{path} line {number} is not a document: {why}") from why
            documents.append(ids)
    if not documents:
        raise ValueError(f"{path} holds no documents")
    return documents


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    cli.define_config()
    cli.run(main)
