"""Our eviction beside OpenVINO GenAI's on the same GGUF file: `make peer-eviction`.

    python -m tests.parity.eviction --peer=.venv-real/openvino/bin/python --out=results/peer_eviction.csv

OpenVINO evicts whole blocks of 32 keys between a start and a recent area, equal in all heads. By default it
ranks a prompt's blocks by its last 8 queries, as SnapKV does, and sums attention only while it decodes. Our
scorers get as many keys, sinks and recent keys. It scores no given tokens, so quality is how much of a greedy
continuation equals that of the engine's own full cache, up to the first difference, and the share of needles
found. Both engines serve all prompts at once from room for --pool tokens of KV: output tokens/s (prompts
included in the time, one core) and the most requests that ran at once come from that. Our room is slabs and
the pages of one prompt. OpenVINO keeps 4-bit weights and 8-bit K/V, ours are float32 here; so rates are
compared within an engine first.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals.longcontext.checkpoint import CheckpointModel
from mixattn.evals.longcontext.example import score
from mixattn.evals.longcontext.statistics import interval
from mixattn.evals.longcontext.tasks import TASKS
from mixattn.tools import cli, files
from pallas_kernels import results
from serving.config import EngineConfig, KeepSettings, Limits
from serving.engine.engine import Engine
from serving.engine.program_cache import ProgramCache, default_folder
from serving.request import Request, Sampling

flags.DEFINE_string("peer", ".venv-real/openvino/bin/python", "Python with openvino-genai.")
flags.DEFINE_string("gguf", "models/SmolLM2-135M-Instruct.Q4_1.gguf", "The file that OpenVINO opens.")
flags.DEFINE_string("model", "models/smollm2", "The same model as a checkpoint directory.")
flags.DEFINE_string("out", "results/peer_eviction.csv", "The table.")
flags.DEFINE_string("build", "build/peer-eviction", "Folder of the files that both sides exchange.")
flags.DEFINE_integer("rows", 12, "Texts, and as many needles.", lower_bound=1)
flags.DEFINE_integer("prompt", 448, "Tokens of each prompt.", lower_bound=128)
flags.DEFINE_integer("new", 32, "Greedy tokens of a continuation.", lower_bound=16)
flags.DEFINE_list("budgets", ["96", "224"], "Keys, multiples of 32.")
flags.DEFINE_integer("pool", 2048, "Tokens of KV that OpenVINO shares among its requests.", lower_bound=512)
flags.DEFINE_list("scorers", ["h2o", "streaming"], "Our side.")
flags.DEFINE_string("note", "", "For the table's header, e.g. what else ran on the machine.")
FLAGS = flags.FLAGS
BLOCK = 32
PAGE = 16

# (prompts, budgets, figures by budget) -> outputs by budget and prompt
type AnswerAll = Callable[[list[list[int]], list[int | None], dict[int, Any]], list[list[list[int]]]]


def main() -> None:
    """Both sides and the table."""
    if not Path(FLAGS.peer).exists():
        raise ValueError(f"--peer={FLAGS.peer} does not exist; `make real-peers` makes it")
    budgets = [int(text) for text in FLAGS.budgets]
    for budget in budgets:
        if budget % BLOCK or budget < 3 * BLOCK:
            raise ValueError(f"a budget of {budget} keys; OpenVINO needs a multiple of 32, at least 96")
    model = CheckpointModel(Path(FLAGS.model))
    texts = [model.text(FLAGS.prompt, i) for i in range(FLAGS.rows)]
    needles = [
        TASKS["needle"](0, i, FLAGS.prompt, (0.1, 0.5, 0.9)[i % 3], model.count) for i in range(FLAGS.rows)
    ]
    asked = [model.ids(n.context) + model.ids(n.question + n.lead, first=False) for n in needles]
    rows = []
    full: dict[str, Any] = {}  # our answers with all keys, which no scorer changes
    for name, run in (("openvino", _openvino), *((s, _ours(model, s, full)) for s in FLAGS.scorers)):
        about: dict[str, Any] = {}
        all_keys, *cut = run([*texts, *asked], [None, *budgets], about)
        for budget, outputs in zip((0, *budgets), (all_keys, *cut), strict=True):
            same = [_same(a, b) for a, b in zip(outputs[: len(texts)], all_keys, strict=False)]
            found = [
                score(n, model.tokenizer.decode(ids))
                for n, ids in zip(needles, outputs[len(texts) :], strict=True)
            ]
            rows.append(_row(name, budget, same, found) | about.get(budget, {}))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    asked_for = {name: FLAGS[name].value for name in ("prompt", "new", "pool", "note") if FLAGS[name].value}
    command = "make peer-eviction (python -m tests.parity.eviction)"
    results.write_csv(FLAGS.out, rows, command=command, texts=FLAGS.rows, **asked_for)


def _row(engine: str, budget: int, same: Sequence[float], found: Sequence[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": engine, "keys": budget or "all"}
    for name, values in (("same_as_full", same), ("needles", found)):
        about = interval(values)
        figures = {name: about.mean, f"{name}_low": about.low, f"{name}_high": about.high}
        row |= {key: round(value, 4) for key, value in figures.items()}
    return row


def _same(ids: Sequence[int], full: Sequence[int]) -> float:
    """The share of a continuation before it first differs."""
    pairs = zip(ids, full, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(full)) / len(full)


def _openvino(
    prompts: list[list[int]], budgets: list[int | None], about: dict[int, Any]
) -> list[list[list[int]]]:
    build = Path(FLAGS.build)
    build.mkdir(parents=True, exist_ok=True)
    areas = [b and {"start": BLOCK, "recent": BLOCK, "total": b} for b in budgets]
    ask = {"gguf": FLAGS.gguf, "prompts": prompts, "new": FLAGS.new, "budgets": areas}
    files.write_json(build / "ask.json", ask | {"blocks": FLAGS.pool // BLOCK})
    script = Path(__file__).with_name("openvino_eviction.py")
    subprocess.run([FLAGS.peer, str(script), str(build / "ask.json"), str(build / "answer.json")], check=True)
    said = json.loads((build / "answer.json").read_text(encoding="utf-8"))["budgets"]
    for budget, one in zip(budgets, said, strict=True):
        rate = sum(map(len, one["outputs"])) / one["seconds"]
        about[budget or 0] = {"output_tok_per_s": round(rate, 1), "most_at_once": one["most_at_once"]}
    return [one["outputs"] for one in said]


def _ours(model: CheckpointModel, scorer: str, full: dict[str, Any]) -> AnswerAll:
    def run(
        prompts: list[list[int]], budgets: list[int | None], about: dict[int, Any]
    ) -> list[list[list[int]]]:
        outputs = []
        for budget in budgets:
            if budget is None and full:
                outputs.append(full["outputs"])
                about[0] = full["about"]
                continue
            served, about[budget or 0] = _served(model, _engine_config(scorer, budget), prompts)
            outputs.append(served)
            if budget is None:
                full.update(outputs=served, about=about[0])
        return outputs

    return run


def _engine_config(scorer: str, budget: int | None) -> EngineConfig:
    """As many slots as --pool tokens of KV hold: whole requests, or slabs beside the pages of one prompt."""
    request_pages = -(-(FLAGS.prompt + FLAGS.new) // PAGE)
    slab_tok = -(-((budget or 0) + 1) // PAGE) * PAGE
    prompt_tok = (1 + -(-FLAGS.prompt // PAGE)) * PAGE
    slots = (FLAGS.pool - prompt_tok) // slab_tok if budget else FLAGS.pool // (request_pages * PAGE)
    keep = {"sinks": BLOCK, "recent_tok": BLOCK, "snapshots": 0, "prefilling": 1, "full_decode": False}
    return EngineConfig(
        max_slots=slots,
        num_pages=1 + (prompt_tok if budget else slots * request_pages * PAGE) // PAGE,
        max_request_tok=FLAGS.prompt + FLAGS.new,
        page_size=PAGE,
        limits=Limits(chunk_tok=128, step_tok=128, decode_steps=(4, 1)),
        prefill_rows=(1,),
        chunk_sizes=(16,),
        reuse=False,
        keep=KeepSettings(slab_tok=budget, scorer=scorer, **keep) if budget else KeepSettings(),
    )


def _served(
    model: CheckpointModel, config: EngineConfig, prompts: list[list[int]]
) -> tuple[list[list[int]], dict[str, Any]]:
    """Outputs in order, and output tokens/s and the most requests at once."""
    engine = Engine(model.model, config, program_cache=ProgramCache(default_folder()))
    sampling = Sampling(max_tokens=FLAGS.new, ignore_eos=True)
    engine.run([Request(client="warm", prompt_ids=prompts[0][:40], sampling=sampling)])
    order = {
        engine.submit(Request(client="peer", prompt_ids=ids, sampling=sampling)): i
        for i, ids in enumerate(prompts)
    }
    outputs: list[list[int]] = [[] for _ in prompts]
    began, most = time.perf_counter(), 0
    while engine.live:
        for delta in engine.step():
            outputs[order[delta.id]] += delta.ids
        most = max(most, engine.stats().running)
    rate = sum(map(len, outputs)) / (time.perf_counter() - began)
    return outputs, {"output_tok_per_s": round(rate, 1), "most_at_once": most}


if __name__ == "__main__":
    cli.run(main)
