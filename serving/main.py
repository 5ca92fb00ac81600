"""Serves a trained checkpoint offline: several clients under several policies, figures into WORKDIR/serve; or
the requests of a file.

    python -m serving.main --config=configs/demo.py --workdir=runs/demo
    python -m serving.main --config=configs/demo.py --workdir=runs/demo --requests=a.jsonl --out=b.jsonl

Reads WORKDIR/model and WORKDIR/heldout.jsonl, which `python -m train.main` leaves there. Writes, whole or not
at all, serve/POLICY.events.jsonl (the scheduling log) and serve/summary.json (what `serving.offline.report`
draws). With --requests it answers those lines instead (fields: see `serving.offline.requests_file`), one line
per answer as it comes; the same command again resumes where it was stopped. --model names any Hugging Face
directory instead.

Programs are compiled at the start, listed with their seconds. With JAX_COMPILATION_CACHE_DIR=DIR and
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 in the environment they are kept between runs.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

from absl import flags, logging

from mixattn.tools import cli
from mixattn.tools.files import write_text

_JSON = flags.DEFINE_bool("json", False, "Print the table as JSON instead.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training run.")


_MODEL = flags.DEFINE_string("model", None, "Hugging Face directory to serve instead of WORKDIR/model.")
_REQUESTS = flags.DEFINE_string("requests", None, "Answer the requests of this file of JSON lines.")
_OUT = flags.DEFINE_string("out", None, "File the answers go to, with --requests; kept and continued.")


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
    # jax is loaded only now: a wrong config or folder is refused at once.
    from serving.offline import tables

    summary = serve_all(serve, workdir, documents)
    write_text(workdir / "serve" / "summary.json", json.dumps(summary, indent=1))
    if _JSON.value:
        print(json.dumps({k: v["table"] for k, v in summary["policies"].items()}))
    else:
        tables.show(summary)


def answer(config) -> None:
    """Answers the requests of a file."""
    from serving.offline.answers import Answers
    from serving.offline.requests_file import read

    folder = Path(_MODEL.value) if _MODEL.value else Path(_WORKDIR.value or ".") / "model"
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no model; name a training run by --workdir or a folder by --model")
    if not Path(_REQUESTS.value).exists():
        raise ValueError(f"{_REQUESTS.value} does not exist")
    from mixattn import hf

    tokenizer = hf.load_tokenizer(folder) if (folder / "tokenizer.json").exists() else None
    encode = None if tokenizer is None else (lambda text: tokenizer.encode(text).ids)
    # What the checkpoint calls the end of a text ends a request, unless the config names other ids.
    config = dataclasses.replace(config, eos_ids=config.eos_ids or tuple(hf.stop_ids(folder)))
    requests = read(Path(_REQUESTS.value), encode)
    answers = Answers(Path(_OUT.value), requests)
    left = answers.missing
    try:
        stats = _answer(config, hf.load(folder)[0], tokenizer, left, answers) if left else {}
    finally:
        answers.close()
    told = {"answered": len(left), "kept": len(requests) - len(left), **stats}
    print(json.dumps(told) if _JSON.value else ", ".join(f"{k} {v}" for k, v in told.items()))


def _answer(config, model, tokenizer, requests, answers) -> dict[str, Any]:
    from serving.engine.engine import Engine
    from serving.offline.console import RequestLines

    with RequestLines() as lines:
        line = lines.add("answer", sum(r.sampling.n for r in requests))
        decode = None if tokenizer is None else tokenizer.decode
        engine = Engine(model, config, report=line.compiled, decode=decode)
        for request in requests:
            engine.check(request)
        queue = iter(requests)
        while True:
            # A few more than run at once: enough for the policy to choose from, and a short queue to keep.
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


def serve_all(serve, workdir: Path, documents: list[list[int]]) -> dict[str, Any]:
    """Runs every policy; returns what summary.json says."""
    from mixattn import hf
    from serving.offline import compare
    from serving.offline.console import RequestLines

    model, config = hf.load(workdir / "model")
    tokenizer = hf.load_tokenizer(workdir / "model")
    (workdir / "serve").mkdir(exist_ok=True)
    summary: dict[str, Any] = {"policies": {}, "memory": compare.kv_memory(config, [256, 1024, 4096])}
    programs = None  # compiled once, shared by all policies
    with RequestLines() as lines:
        for policy in serve.policies:
            line = lines.add(f"serve {policy}", serve.workload.requests)
            run = compare.run(model, serve, policy, documents, line.delta, line.compiled, programs)
            programs = run.programs
            log = "".join(json.dumps(event) + "\n" for event in run.events)
            write_text(workdir / "serve" / f"{policy}.events.jsonl", log)
            kept = {"table": run.table, "curves": run.curves, "gap_curve": run.gap_curve}
            summary["policies"][policy] = kept
            summary.setdefault("completions", completions(run, serve, documents, tokenizer))
    return summary


def completions(run, serve, documents, tokenizer) -> list[dict[str, str]]:
    """A few prompts and what the model made of them, as text; the end of each prompt only."""
    from serving.offline.clients import Arrivals

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
    """Held-out documents, one JSON object a line with "ids".

    Raises:
      ValueError: the file is missing, empty, or a line is not such an object (named by number).
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
