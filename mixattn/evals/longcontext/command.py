"""Long contexts under a KV budget: what is forgotten, by task, length, depth, budget and scorer.

    python -m mixattn.evals longcontext --checkpoint=runs/demo/model --fast
    python -m mixattn.evals longcontext --checkpoint=models/smollm2 --tasks=needle,text --budgets=0.1,0.2,0.5
    python -m mixattn.evals longcontext --checkpoint=models/smollm2 --mode=agnostic --scorers=snapkv,h2o
    python -m mixattn.evals longcontext --workdir=runs/longcontext --show

Tasks: needle (one number in a text), needle_keys (many numbers, one is asked for), needle_values (four
numbers of one name), needle_queries (four of eight names), tracking (which variables hold a value),
common_words, frequent_words, documents (a question on one of many reports); their score is the share of the
expected strings in the answer, 1 is best. text is the mean nats of the last quarter of English prose after a
prompt of three quarters, stream the same where all but 16 tokens are read one by one with rolling positions,
also beyond the trained context; less is better.

A budget is a share of the prompt (0.2) or a number of keys (256). Every scorer gets the same --sinks and
--recent, so that a scorer is not praised for what keeping the first and the last keys does; "recent" alone
gets no sinks, since with them it is "streaming". Variants follow a scorer's name: h2o+always promotes as
FlexGen did, h2o+owner_only asks the owner's queries only, and so +prompt, +pyramid, +blockwise, +one_recent.
--mode=agnostic cuts the context before the question is read. Every answer is a line of answers.jsonl; a run
that was stopped goes on when started again. Intervals are 95 % bootstrap intervals; minus_full compares the
same questions with the full cache, minus_h2o with H2O at the same budget, and the last lines say where H2O
loses.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mixattn.evals import command_line
from mixattn.evals.longcontext import pictures, statistics
from mixattn.evals.longcontext.journal import AnswerLog, read
from mixattn.evals.longcontext.policies import KeepPolicy, grid
from mixattn.evals.longcontext.suite import NATS_TASKS, SuiteGrid, run
from mixattn.evals.longcontext.tasks import TASKS
from mixattn.tools import files
from mixattn.tools.progress import ProgressLines
from pallas_kernels import results

if TYPE_CHECKING:
    from mixattn.evals.longcontext.checkpoint import CheckpointModel

# A checkpoint directory, `CheckpointModel.scored` and the whole grid -> what answers.
type MakeModel = Callable[[Path, int, SuiteGrid], "CheckpointModel"]
FLAGS = flags.FLAGS
FAST = {"tasks": ["needle", "text"], "lengths": ["192"], "depths": ["0.5"], "budgets": ["0.25"], "samples": 2}
FAST_SCORERS = ["h2o", "streaming"]


def start(argv: list[str]) -> None:
    """Runs the command line."""
    define_flags()
    command_line.run(__name__, main, argv)


def define_flags() -> None:
    """Defines the flags of the suite."""
    flags.DEFINE_string("checkpoint", "", "A checkpoint directory.")
    flags.DEFINE_string("workdir", "runs/longcontext", "Folder of the answers, the table and the pictures.")
    flags.DEFINE_list("tasks", ["needle", "needle_keys", "text"], f"Of {', '.join((*TASKS, *NATS_TASKS))}.")
    flags.DEFINE_list("lengths", ["512", "1024"], "Tokens of context and question.")
    flags.DEFINE_list("depths", ["0.1", "0.5", "0.9"], "Where the answer lies, from 0 to 1.")
    flags.DEFINE_list(
        "scorers",
        ["h2o", "streaming", "random"],
        "What ranks keys; see `mixattn.keep`; h2o+always is a variant.",
    )
    flags.DEFINE_list("budgets", ["0.2", "0.5"], "Shares of the prompt, or numbers of keys.")
    flags.DEFINE_integer("sinks", 4, "First keys that no scorer may evict.", lower_bound=0)
    flags.DEFINE_float(
        "recent", 0.5, "Share of the budget for the newest keys.", lower_bound=0, upper_bound=1
    )
    flags.DEFINE_enum(
        "mode", "aware", ["aware", "agnostic"], "Is the cache cut after or before the question?"
    )
    flags.DEFINE_integer("samples", 10, "Questions for each cell.", lower_bound=1)
    flags.DEFINE_integer("batch", 8, "Questions at a time.", lower_bound=1)
    flags.DEFINE_integer("scored", 0, "Tokens of a text that are scored; 0: a quarter.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the questions.")
    flags.DEFINE_bool("fast", False, "A small grid, to see that it works: about a minute.")
    flags.DEFINE_bool("show", False, "Only show what --workdir holds.")
    flags.DEFINE_string("csv", "", "Also write the table here, and the pictures beside it.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(make_model: MakeModel | None = None, command: str = "python -m mixattn.evals longcontext") -> None:
    """Runs the grid and shows it.

    Args:
      make_model: what answers; by default the checkpoint without a server.
      command: by which it is called, for the table.
    """
    workdir = Path(FLAGS.workdir)
    if not FLAGS.show:
        _run(workdir, make_model or _without_server)
    answers = read(workdir / "answers.jsonl")
    if not answers:
        raise ValueError(f"{workdir} holds no answers; run without --show first")
    rows = statistics.table(answers)
    settings = files.read_json(workdir / "run.json")
    lost = statistics.where_it_loses(rows, NATS_TASKS)
    drawn: list[Path] = []
    for table in (workdir / "table.csv", *([Path(FLAGS.csv)] if FLAGS.csv else [])):
        rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        results.write_csv(table, rounded, quiet=True, command=command, **settings)
        drawn += _draw(answers, table.parent, "" if table.parent == workdir else f"{table.stem}_")
    if FLAGS.json:
        command_line.print_json({"rows": rows, "lost": lost, "pictures": [str(path) for path in drawn]})
        return
    print(_text(rows))
    who, least = statistics.REFERENCE, statistics.MIN_PAIRS
    print(f"\nWhere {who} loses (paired, beyond 95 %, {least} questions or more):")
    print("\n".join(lost or ["nowhere here"]), end="\n\n")
    print(f"answers and table.csv are in {workdir}; pictures: {', '.join(map(str, drawn)) or 'none'}")


def _draw(answers: list[dict[str, Any]], folder: Path, prefix: str) -> list[Path]:
    """Draws what there is; returns the files."""
    both = ((pictures.heat_map, "depths.svg"), (pictures.budget_curve, "budgets.svg"))
    paths = [(draw, folder / f"{prefix}{name}") for draw, name in both]
    return [path for draw, path in paths if draw(answers, path)]


def _without_server(path: Path, scored: int, wanted: SuiteGrid) -> "CheckpointModel":
    from mixattn.evals.longcontext.checkpoint import CheckpointModel

    return CheckpointModel(path, scored)


def _run(workdir: Path, make_model: MakeModel) -> None:
    from mixattn.evals.longcontext.checkpoint import keep_of

    wanted = _grid()
    for policy in wanted.policies:
        keep_of(policy)  # refuses a bad budget before anything loads
    path = Path(command_line.needed("checkpoint", "models/smollm2"))
    if FLAGS.scored >= min(wanted.lengths):
        raise ValueError(f"--scored={FLAGS.scored} leaves nothing to read of {min(wanted.lengths)} tokens")
    model = make_model(path, FLAGS.scored, wanted)
    exact = [task for task in wanted.tasks if task != "stream"]
    if exact:
        answer_tok = 0 if set(exact) <= set(NATS_TASKS) else 64
        model.check(max(wanted.lengths), answer_tok)
    settings = {"checkpoint": str(path), "seed": wanted.seed, "sinks": FLAGS.sinks, "recent": FLAGS.recent}
    if FLAGS.scored:
        settings["scored"] = FLAGS.scored
    log = AnswerLog(workdir, settings)
    with ProgressLines(quiet=FLAGS.json) as lines:
        line, done = lines.add(wanted.size, f"0 of {wanted.size} answers"), 0

        def on_batch(more: int, doing: str) -> None:
            nonlocal done
            done += more
            line.update(done, f"{done} of {wanted.size} answers; {doing}")

        run(wanted, model, log, on_batch)


def _grid() -> SuiteGrid:
    given = {name: FLAGS[name].value for name in ("tasks", "lengths", "depths", "budgets", "samples")}
    scorers = FLAGS.scorers
    if FLAGS.fast:
        given |= {name: value for name, value in FAST.items() if not FLAGS[name].present}
        scorers = scorers if FLAGS["scorers"].present else FAST_SCORERS
    return SuiteGrid(
        tasks=tuple(given["tasks"]),
        lengths=tuple(_numbers(given["lengths"], "lengths", int)),
        depths=tuple(_numbers(given["depths"], "depths", float)),
        policies=_policies(scorers, given["budgets"]),
        samples=given["samples"],
        mode=FLAGS.mode,
        batch=FLAGS.batch,
        seed=FLAGS.seed,
    )


def _policies(scorers: list[str], budgets: list[str]) -> tuple[KeepPolicy, ...]:
    return tuple(grid(scorers, budgets, sinks=FLAGS.sinks, recent=FLAGS.recent))


def _numbers(texts: list[str], name: str, kind: type) -> list[Any]:
    try:
        return [kind(text) for text in texts]
    except ValueError:
        raise ValueError(f"--{name}={','.join(texts)} is no list of numbers") from None


def _text(rows: list[dict[str, Any]]) -> str:
    head = ["task", "tokens", "mode", "policy", "n", "score", "95 %", "minus full", "95 %"]
    lines = []
    for row in rows:
        cells = [
            row["task"],
            str(row["length"]),
            row["mode"],
            row["policy"],
            str(row["n"]),
            f"{row['score']:.3f}",
        ]
        cells.append(f"{row['low']:.3f} to {row['high']:.3f}")
        if "minus_full" in row:
            cells.append(f"{row['minus_full']:+.3f}")
            cells.append(f"{row['minus_full_low']:+.3f} to {row['minus_full_high']:+.3f}")
        else:
            cells += ["", ""]
        lines.append(cells)
    return command_line.table(head, lines)
