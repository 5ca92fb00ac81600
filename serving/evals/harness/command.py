"""lm-evaluation-harness over our engine: its tasks under several budgets of keys, and what each budget costs.

    make lm-eval                                      an environment with lm_eval, without torch
    .venv-lm-eval/bin/python -m serving.evals harness --model=models/smollm2
    .venv-lm-eval/bin/python -m serving.evals harness --tasks=own_choices --scorers=h2o --budgets=0.1,0.5

Tasks: own_choices (multiple choice behind examples, in the form of H2O's accuracy figures; own sentences),
and any task of the harness, such as its RULER tasks ruler_vt, ruler_cwe and ruler_fwe, which make their own
texts. ruler_niah_* and ruler_qa_* download texts. ruler_vt cannot make a text of 512 tokens and never ends
there: --length is 2,048 or more for RULER.

A budget is a share of the prompt (0.2) or a number of keys (256). Every scorer gets the same --sinks and
--recent. A context is computed with every key and then cut; its last --unseen tokens are read after the cut,
so that even the first token of an answer is said from what is left. Every answer is a line of answers.jsonl
in --workdir: a run that was stopped goes on when started again. Intervals are 95 % bootstrap intervals;
minus_full compares the same questions with the full cache.
"""

import importlib.util
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging

from mixattn.evals import command_line
from mixattn.evals.longcontext.policies import FULL, KeepPolicy, grid
from mixattn.evals.longcontext.statistics import interval
from mixattn.tools import files
from mixattn.tools.progress import ProgressLines
from pallas_kernels import results
from serving.evals.harness import choices

FLAGS = flags.FLAGS
RULER = "ruler_"
RULER_LEAST = 2048  # tokens; the harness' variable tracking does not end at 512
BEYOND_TOK = 64  # a RULER text of N tokens may leave no room for its answer in N


def start(argv: list[str]) -> None:
    flags.DEFINE_string("model", None, "Checkpoint directory.")
    flags.DEFINE_list("tasks", ["ruler_vt", "ruler_cwe", "ruler_fwe", choices.NAME], "Names of tasks.")
    flags.DEFINE_integer("length", RULER_LEAST, "Tokens of RULER's texts, and of the longest request.", 64)
    flags.DEFINE_integer("limit", 8, "Questions of each RULER task.", 1)
    flags.DEFINE_integer("choices", 64, "Questions of other tasks.", 1)
    flags.DEFINE_integer("shots", 5, "Examples in front of a question of own_choices.", 0, choices.EXAMPLES)
    flags.DEFINE_list("scorers", ["h2o", "streaming", "random"], "What ranks keys; see `mixattn.keep`.")
    flags.DEFINE_list("budgets", ["0.2"], "Shares of the prompt, or numbers of keys.")
    flags.DEFINE_integer("sinks", 4, "First keys that no scorer may evict.", 0)
    flags.DEFINE_float("recent", 0.5, "Share of the budget for the newest keys.", 0, 1)
    flags.DEFINE_integer("unseen", 1, "Last tokens of a context that are read after the cut.", 0)
    flags.DEFINE_integer("slots", 4, "Requests at once.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the texts that tasks make.")
    flags.DEFINE_string("workdir", "runs/harness", "Folder of the answers.")
    flags.DEFINE_string("csv", None, "Also write the table here.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    command_line.run(__name__, _main, argv)


def _main() -> None:
    path = Path(command_line.needed("model", "models/smollm2"))
    if not (path / "config.json").exists():
        raise ValueError(f"--model={path} holds no model; `make model` fetches one into models/smollm2")
    if any(task.startswith(RULER) for task in FLAGS.tasks) and FLAGS.length < RULER_LEAST:
        raise ValueError(
            f"--length={FLAGS.length}, and RULER's tasks need {RULER_LEAST}: the harness' variable tracking "
            "never ends at 512"
        )
    policies = grid(FLAGS.scorers, FLAGS.budgets, sinks=FLAGS.sinks, recent=FLAGS.recent)
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("lm_eval is not installed here; `make lm-eval` makes an environment that has it")
    rows = []
    for more in _evaluate(path, policies):
        rows += more
        if FLAGS.csv:
            results.write_csv(FLAGS.csv, rows, quiet=True, **_recipe(path))
    if FLAGS.json:
        command_line.print_json({"rows": rows})
    else:
        print(_text(rows))


def _evaluate(path: Path, policies: list[KeepPolicy]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each task as soon as it is answered."""
    from lm_eval import simple_evaluate

    from serving.evals.harness.keep_engine import HarnessSizes
    from serving.evals.harness.lm import EngineLM, HarnessModel

    logging.set_verbosity(logging.ERROR)
    workdir = Path(FLAGS.workdir)
    _claim(workdir, path)
    sizes = HarnessSizes(FLAGS.length + BEYOND_TOK, FLAGS.slots, unseen_tok=FLAGS.unseen)
    with ProgressLines(quiet=FLAGS.json) as lines:
        line = lines.add(1, "loading")
        doing = ""

        def on_answers(known: int, wanted: int) -> None:
            line.update(known / wanted, f"{doing}: {known} of {wanted} answers")

        model = HarnessModel.load(
            path, policies, sizes, answers=workdir / "answers.jsonl", on_answers=on_answers
        )
        for name, task in _tasks(path).items():
            doing, limit = name, FLAGS.limit if name.startswith(RULER) else FLAGS.choices
            samples = {}
            for policy in policies:
                told = simple_evaluate(EngineLM(model, policy), tasks=[task], limit=limit, bootstrap_iters=0)
                samples[policy.name] = told["samples"][name]
            yield _rows(name, samples)


def _tasks(path: Path) -> dict[str, Any]:
    """Tasks by name, each made once: the harness' own texts differ from one making to the next."""
    import numpy as np
    from lm_eval.tasks import TaskManager

    random.seed(FLAGS.seed)
    np.random.seed(FLAGS.seed)
    words = _tokenizer_alone(path, Path(FLAGS.workdir) / "tokenizer")
    manager = TaskManager(metadata={"tokenizer": str(words), "max_seq_lengths": [FLAGS.length]})
    return {
        name: choices.task(FLAGS.shots) if name == choices.NAME else manager.load([name])["tasks"][name]
        for name in FLAGS.tasks
    }


def _tokenizer_alone(path: Path, folder: Path) -> Path:
    """A folder with the checkpoint's tokenizer and nothing else, for the generators of the harness.

    They load it by transformers, which would run a model's own module beside it, and that needs torch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path / "tokenizer.json", folder / "tokenizer.json")
    files.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return folder


def _rows(task: str, by_policy: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each policy: the mean over questions with its interval, and what it differs from full."""
    rows = []
    for policy, said in by_policy.items():
        scores = {sample["doc_id"]: _score(sample) for sample in said}
        full = {sample["doc_id"]: _score(sample) for sample in by_policy[FULL]}
        own, paired = interval(list(scores.values())), interval([scores[i] - full[i] for i in scores])
        row = {"task": task, "policy": policy, "n": own.n}
        row |= {"score": own.mean, "low": own.low, "high": own.high}
        row |= {"minus_full": paired.mean, "minus_full_low": paired.low, "minus_full_high": paired.high}
        rows.append(row)
    return rows


def _score(sample: dict[str, Any]) -> float:
    """A question's score: accuracy, or of a task with a metric for each length the one that counted."""
    if "acc" in sample["metrics"]:
        return float(sample["acc"])
    return max(float(sample[name]) for name in sample["metrics"])


def _claim(workdir: Path, path: Path) -> None:
    """Refuses answers of another model or of other settings."""
    settings = {"model": str(path)}
    settings |= {name: FLAGS[name].value for name in ("length", "sinks", "recent", "unseen")}
    about = workdir / "run.json"
    known = files.read_json(about) if about.exists() else settings
    for name, value in settings.items():
        if known.get(name) != value:
            raise ValueError(
                f"{workdir} holds answers with {name}={known.get(name)}, not {value}; name another --workdir"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(about, settings)


def _recipe(path: Path) -> dict[str, Any]:
    from importlib.metadata import version

    names = ("length", "limit", "choices", "shots", "sinks", "recent", "unseen", "seed")
    given = {name: FLAGS[name].value for name in names}
    return {
        "command": f"python -m serving.evals harness --model={path}",
        **given,
        "lm_eval": version("lm_eval"),
        "samples": f"few: {FLAGS.limit} texts of each RULER task; read the intervals, not the means",
        "own_choices": "sentences of this project, shorter and easier than the paper's tasks",
    }


def _text(rows: list[dict[str, Any]]) -> str:
    head = ["task", "policy", "n", "score", "95 %", "minus full", "95 %"]
    lines = [
        [
            row["task"],
            row["policy"],
            str(row["n"]),
            f"{row['score']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['minus_full']:+.3f}",
            f"{row['minus_full_low']:+.3f} to {row['minus_full_high']:+.3f}",
        ]
        for row in rows
    ]
    return command_line.table(head, lines)
