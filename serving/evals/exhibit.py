"""What a small model is worth as a judge: pairs of a right and a wrong answer, judged in three ways.

    python -m serving.evals exhibit --model=models/smollm2 --out=results/judge/small.csv
    python -m serving.evals exhibit --model=DIR --pairs=30 --replies=8

The right answer is the reference to one of our questions, the wrong one that of the next question of its
category. `likelihood` compares the verdict marks after the judge's prompt, in both orders: how often does the
first place win, and is the difference without the order right? `answer` compares the answers' own mean
log-probabilities. `parse` reads replies; how many hold no verdict? Shares with 95 % Wilson intervals.
Ctrl-C and kill -9 lose one judgment: the same command continues.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from mixattn.evals.command_line import print_json, run, table
from mixattn.evals.judge import bias, templates
from mixattn.evals.judge.bench import Bench, Question, QuestionId, Turns
from mixattn.evals.judge.commands.questions import OWN
from mixattn.evals.judge.judging import JudgeOptions, ModelJudge, Verdict
from mixattn.evals.judge.lines import LineLog, Row, read_rows
from mixattn.evals.judge.matches import JudgeMatch, key_of_row, make

if TYPE_CHECKING:
    from serving.evals.scoring import ScoringModel

FLAGS = flags.FLAGS
RIGHT, WRONG = "right", "wrong"


def start(argv: list[str]) -> None:
    flags.DEFINE_string("model", "models/smollm2", "Hugging Face directory or GGUF file.")
    flags.DEFINE_string("workdir", "runs/exhibit", "Folder of the judgments; continued if there.")
    flags.DEFINE_integer("pairs", 30, "Pairs, at most 30.", 2, 30)
    flags.DEFINE_integer("replies", 8, "Replies for `parse`, each one pair in one order; 0 leaves it out.", 0)
    flags.DEFINE_integer("max_tokens", 96, "Most tokens of a reply.", 1)
    flags.DEFINE_string("out", None, "File for the table.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    run(__name__, _main, argv)


def _main() -> None:
    path = Path(FLAGS.model)
    if not path.is_file() and not (path / "config.json").exists():
        raise ValueError(f"--model={path} holds no model; `make model` fetches one into models/smollm2")
    matches = pairs(FLAGS.pairs)
    from serving.evals.scoring import load_scorer

    scorer = load_scorer(path)
    rows = measure(scorer, matches, FLAGS.replies, FLAGS.max_tokens)
    if FLAGS.out:
        from pallas_kernels.results import write_csv

        what = "references to our own questions against those of other questions"
        write_csv(FLAGS.out, rows, model=str(path), pairs=len(matches), data=what)
    if FLAGS.json:
        print_json({"model": str(path), "rows": rows})
    else:
        print(table(list(rows[0]), [[_text(x) for x in row.values()] for row in rows]))


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def pairs(n: int) -> list[JudgeMatch]:
    """First turns of graded questions, each with its reference and that of the next of its category."""
    bench = Bench(OWN)
    graded = [question for question in bench.questions() if question.graded]
    references = bench.references("own", graded)
    wrong: dict[QuestionId, Turns] = {}
    for category in dict.fromkeys(question.category for question in graded):
        ids = [question.id for question in graded if question.category == category]
        wrong |= {id: references[other] for id, other in zip(ids, [*ids[1:], ids[0]])}
    first = [Question(q.id, "general", q.turns[:1]) for q in graded[:: max(1, len(graded) // n)][:n]]
    answers = {RIGHT: references, WRONG: wrong}
    return make("pairwise_all", first, answers, {}, templates.load(templates.OWN))


def measure(
    scorer: "ScoringModel", matches: Sequence[JudgeMatch], replies: int, max_tokens: int
) -> list[Row]:
    """The table: verdict, measure, n, share, lower, upper."""
    likely = _judged(scorer, matches, "likelihood", "pairs in both orders")
    means = _judged(scorer, matches, "answer", "pairs")
    rows = [
        _row("likelihood", "first place wins, of verdicts", _first_wins(likely)),
        _row("likelihood", "same verdict in both orders", [r["g1_winner"] == r["g2_winner"] for r in likely]),
        _row("likelihood", "right in both orders", [_won(r) == (RIGHT, RIGHT) for r in likely]),
        _row("likelihood", "right without the order", [_order_free(r) > 0 for r in likely]),
        _row("answer", "right", [_won(r) == (RIGHT, RIGHT) for r in means]),
    ]
    if replies:
        parsed = _judged(scorer, matches[: -(-replies // 2)], "parse", "pairs in both orders", max_tokens)
        verdicts = [each for row in parsed for each in (row["g1_winner"], row["g2_winner"])]
        rows.append(_row("parse", "reply without verdict", [each == "error" for each in verdicts]))
    return rows


def _row(how: str, what: str, found: Sequence[bool]) -> Row:
    share = bias.share(sum(found), len(found))
    return {"verdict": how, "measure": what} | {
        name: round(value, 4) if isinstance(value, float) else value for name, value in share.items()
    }


def _judged(
    scorer: "ScoringModel", matches: Sequence[JudgeMatch], verdict: Verdict, words: str, max_tokens: int = 1
) -> list[Row]:
    judge = ModelJudge(scorer, "exhibit", JudgeOptions(verdict=verdict, max_tokens=max_tokens))
    wanted = {match.key: match for match in matches}

    async def through(call: Callable[[], Any]) -> Any:
        return await call()

    async def all_of_them(log: LineLog, todo: Sequence[JudgeMatch]) -> None:
        for number, match in enumerate(todo, len(matches) - len(todo) + 1):
            log.append(await judge.judge(match, through))
            if number % 5 == 0 or number == len(matches):
                print(f"{verdict}: {number} of {len(matches)} {words}", file=sys.stderr, flush=True)

    path = Path(FLAGS.workdir) / f"{Path(FLAGS.model).name}-{verdict}_pair.jsonl"
    with LineLog(path) as log:
        done = {key_of_row(row) for row in read_rows(path)}
        asyncio.run(all_of_them(log, [match for key, match in wanted.items() if key not in done]))
    return [row for row in read_rows(path) if key_of_row(row) in wanted]


def _won(row: Row) -> tuple[str, str]:
    """What won in each order: right, wrong or tie."""
    first, second = (str(row.get(row[game], row[game])) for game in ("g1_winner", "g2_winner"))
    return first, second


def _first_wins(rows: Sequence[Row]) -> list[bool]:
    """Of each verdict for a side: is it the one shown first?"""
    firsts = (("g1_winner", "model_1"), ("g2_winner", "model_2"))
    return [row[game] == first for row in rows for game, first in firsts if row[game].startswith("model_")]


def _order_free(row: Row) -> float:
    """Log-odds of the right answer's mark against the wrong one's, summed over both orders."""
    one, two = row["g1_logprobs"], row["g2_logprobs"]
    sign = 1 if row["model_1"] == RIGHT else -1
    return sign * float(one["[[A]]"] - one["[[B]]"] + two["[[B]]"] - two["[[A]]"])
