"""Serves a trained checkpoint offline: several clients under several policies, figures into WORKDIR/serve.

    python -m serving.main --config=configs/demo.py --workdir=runs/demo

Reads WORKDIR/model and WORKDIR/heldout.jsonl, which `python -m train.main` leaves there. Writes, whole or not
at all, serve/POLICY.events.jsonl (the scheduling log) and serve/summary.json (what `serving.report` draws).
"""

import json
from pathlib import Path
from typing import Any

from absl import flags, logging

from mixattn import cli
from mixattn.hf.store import write_text

_JSON = flags.DEFINE_bool("json", False, "Print the table as JSON instead.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished training run.")


def main() -> None:
    serve = getattr(cli.config(), "serve", None)
    if serve is None:
        raise ValueError("--config has no field `serve`; name one that serves, e.g. configs/demo.py")
    if not _WORKDIR.value:
        raise ValueError("--workdir is missing; name the folder of a training run, e.g. --workdir=runs/demo")
    workdir = Path(_WORKDIR.value)
    documents = read_documents(workdir / "heldout.jsonl")
    # jax is loaded only now: a wrong config or folder is refused at once.
    from serving import tables

    (workdir / "serve").mkdir(exist_ok=True)
    summary = serve_all(serve, workdir, documents)
    write_text(workdir / "serve" / "summary.json", json.dumps(summary, indent=1))
    if _JSON.value:
        print(json.dumps({k: v["table"] for k, v in summary["policies"].items()}))
    else:
        tables.show(summary)


def serve_all(serve, workdir: Path, documents: list[list[int]]) -> dict[str, Any]:
    """Runs every policy; returns what summary.json says."""
    from mixattn import hf
    from serving import offline
    from serving.progress import Lines

    model, config = hf.load(workdir / "model")
    tokenizer = hf.load_tokenizer(workdir / "model")
    summary: dict[str, Any] = {"policies": {}, "memory": offline.kv_memory(config, [256, 1024, 4096])}
    with Lines() as lines:
        for policy in serve.policies:
            line = lines.add(f"serve {policy}", serve.workload.requests)
            run = offline.run(model, serve, policy, documents, line.delta, line.compiled)
            log = "".join(json.dumps(event) + "\n" for event in run.events)
            write_text(workdir / "serve" / f"{policy}.events.jsonl", log)
            kept = {"table": run.table, "curves": run.curves, "gap_curve": run.gap_curve}
            summary["policies"][policy] = kept
            summary.setdefault("completions", completions(run, serve, documents, tokenizer))
    return summary


def completions(run, serve, documents, tokenizer) -> list[dict[str, str]]:
    """A few prompts and what the model made of them, as text; the end of each prompt only."""
    from serving.clients import Arrivals

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
