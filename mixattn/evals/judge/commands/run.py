"""Has a model judge answers, into BENCH/model_judgment/JUDGE_single.jsonl or JUDGE_pair.jsonl.

    python -m mixattn.evals judge run --bench=runs/bench --mode=single --judge=big --url=http://127.0.0.1:8001/v1
    python -m mixattn.evals judge run --bench=runs/bench --mode=pairwise_all \\
        --judge=often_first --url=scripted:often_first
    python -m mixattn.evals judge run --bench=runs/bench --mode=pairwise_baseline --baseline=echo \\
        --judge=tiny --verdict=answer --url=http://127.0.0.1:8001/v1
    python -m mixattn.evals judge run ... --dry_run --input_usd_per_mtok=2.5 --output_usd_per_mtok=10

Pairs are shown in both orders; only a verdict that both orders share is a win. Ctrl-C and kill -9 lose only
what was under way: the same command continues, and a finished run asks nothing. Another verdict mode or
--label is another file.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals import command_line
from mixattn.evals.judge import matches as matching
from mixattn.evals.judge import templates as prompts
from mixattn.evals.judge.bench import Bench, answers_of_all
from mixattn.evals.judge.commands import calling
from mixattn.evals.judge.judging import VERDICTS, JudgeOptions, ModelJudge, failed
from mixattn.evals.judge.lines import LineLog, Row, read_rows
from mixattn.evals.judge.matches import JudgeMatch, key_of_row
from mixattn.evals.judge.parsing import RULES
from mixattn.evals.judge.play import Caller, Outcome, play

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    calling.define_flags()
    define_judge_flags()
    flags.DEFINE_enum("mode", "single", matching.MODES, "Rate each answer, or compare pairs.")
    flags.DEFINE_string("baseline", "", "With pairwise_baseline: the model that the others meet.")
    flags.DEFINE_enum(
        "labels", "three", ("three", "five"), "Pairwise verdicts: A, B, tie; or [[A>>B]] to [[B>>A]]."
    )
    flags.DEFINE_bool("dry_run", False, "Say how many calls and about how many tokens it takes; ask nothing.")
    shared = (calling.__name__, define_judge_flags.__module__)
    command_line.run(__name__, _main, argv, shared=tuple(name for name in shared if name != __name__))


def define_judge_flags() -> None:
    """Declares the flags that say who judges and how."""
    flags.DEFINE_string("judge", "", "Name of the judge on the server.")
    flags.DEFINE_string(
        "label", "", "Name of the judge in files; by default --judge and, if not parse, --verdict."
    )
    flags.DEFINE_list("models", [], "Models to judge; by default all with answers.")
    flags.DEFINE_string("references", "", "Name of the file in reference_answer/; by default the judge's.")
    flags.DEFINE_string("templates", "", "Judge prompts in FastChat's JSONL form; by default our own.")
    flags.DEFINE_enum(
        "verdict", "parse", VERDICTS, "Read the reply; or compare log-probabilities of marks or answers."
    )
    flags.DEFINE_enum(
        "rule", "first", RULES, "Which of several verdicts in a reply counts; first is FastChat's."
    )
    flags.DEFINE_bool("strict_rating", False, "A rating outside 1 to 10 counts as none.")
    flags.DEFINE_bool("nonce", False, "Fence quoted texts with a random code that no answer can forge.")
    flags.DEFINE_integer("max_tokens", 2048, "Most tokens of a judgment.")
    flags.DEFINE_float(
        "tie_margin", 0.0, "With --verdict=answer: mean log-probabilities this close are a tie."
    )


def options() -> JudgeOptions:
    """How the flags say to judge."""
    return JudgeOptions(
        verdict=FLAGS.verdict,
        rule=FLAGS.rule,
        strict_rating=FLAGS.strict_rating,
        nonce=FLAGS.nonce,
        max_tokens=FLAGS.max_tokens,
        tie_margin=FLAGS.tie_margin,
    )


def label() -> str:
    """The judge's name in files."""
    verdict = "" if FLAGS.verdict == "parse" else f"-{FLAGS.verdict}"
    five = "-five" if "labels" in FLAGS and FLAGS.labels == "five" else ""
    default = f"{command_line.needed('judge', 'big')}{verdict}{five}{'-nonce' if FLAGS.nonce else ''}"
    return FLAGS.label or default


def plan(bench: Bench, mode: str, baseline: str = "", *, five_labels: bool = False) -> list[JudgeMatch]:
    """All matches of the flags.

    Raises:
      ValueError: questions, answers, references or templates are missing or wrong.
    """
    questions = calling.questions(bench)
    models = list(dict.fromkeys(FLAGS.models or bench.models()))
    if baseline and baseline not in models:
        models.append(baseline)
    templates = prompts.load(Path(FLAGS.templates) if FLAGS.templates else prompts.OWN)
    references = bench.references(FLAGS.references or command_line.needed("judge", "big"), questions)
    answers = answers_of_all(bench, models, questions)
    return matching.make(
        mode, questions, answers, references, templates, baseline=baseline, five_labels=five_labels
    )


def _main() -> None:
    if (FLAGS.mode == "pairwise_baseline") != bool(FLAGS.baseline):
        raise ValueError(
            f"--mode={FLAGS.mode} with --baseline={FLAGS.baseline!r}; pairwise_baseline needs one"
        )
    if FLAGS.mode == "single" and (FLAGS.verdict == "answer" or FLAGS.labels == "five"):
        raise ValueError(
            "--verdict=answer and --labels=five compare two answers, but --mode=single shows one"
        )
    bench, caller = calling.bench(), calling.caller()
    matches = plan(bench, FLAGS.mode, FLAGS.baseline, five_labels=FLAGS.labels == "five")
    path = bench.judgment_path(label(), "single" if FLAGS.mode == "single" else "pair")
    if FLAGS.dry_run:
        _dry_run(matches, path, caller)
        return
    calling.check_url()
    rows, outcome, reused = run_matches(matches, path, caller, options())
    errors = sum(map(failed, rows))
    figures = {
        "mode": FLAGS.mode,
        "judge": label(),
        "file": str(path),
        "matches": len(matches),
        "reused": reused,
    }
    figures |= {"judged": outcome.written, "errors": errors, **caller.figures()}
    words = (
        f"{outcome.written} judged, {reused} were there already;"
        f" {errors} of {len(rows)} have no verdict: {path}"
    )
    mode = f"--mode={FLAGS.mode}" + (f" --baseline={FLAGS.baseline}" if FLAGS.baseline else "")
    calling.report(
        figures, [words, f"next: python -m mixattn.evals judge show {mode} --judgments={path}"], outcome
    )


def run_matches(
    matches: Sequence[JudgeMatch], path: Path, caller: Caller, how: JudgeOptions, name: str = ""
) -> tuple[list[Row], Outcome, int]:
    """Judges what `path` does not hold yet.

    Args:
      name: the judge in the file; by default `label()`.

    Returns:
      The rows of these matches, how the run ended, and how many were there before.
    """
    wanted = {match.key: match for match in matches}
    with LineLog(path) as log:
        if log.cut_bytes:
            print(f"cut {log.cut_bytes} bytes of a torn last line off {path}", file=sys.stderr)
        before = {key: row for row in read_rows(path) if (key := key_of_row(row)) in wanted}
        _warn_of_changes(before, wanted, path)
        todo = [match for key, match in wanted.items() if key not in before]
        outcome = asyncio.run(_judge(todo, caller, log, how, name or label()))
        rows = [row for row in read_rows(path) if key_of_row(row) in wanted]
    return rows, outcome, len(before)


async def _judge(
    todo: Sequence[JudgeMatch], caller: Caller, log: LineLog, how: JudgeOptions, name: str
) -> Outcome:
    async with calling.opened(FLAGS.judge) as model:
        judge = ModelJudge(model, name, how)

        async def do(match: JudgeMatch) -> Row:
            caller.check_budget()
            return await judge.judge(match, caller)

        with calling.progress(f"{name} judges", len(todo), caller) as on_line:
            return await play(todo, do, _words, log, parallel=FLAGS.parallel, on_line=on_line)


def _words(match: JudgeMatch) -> str:
    return f"question {match.question.id}, turn {match.turn}, {' against '.join(match.models)}"


def _warn_of_changes(before: dict[Any, Row], wanted: dict[Any, JudgeMatch], path: Path) -> None:
    """A judgment of an earlier run may have been made from other answers or another template."""
    changed = sum(_changed(row, wanted[key]) for key, row in before.items())
    if changed and FLAGS.verdict != "answer":
        print(
            f"warning: {changed} judgments in {path} were made from other prompts than today's answers and"
            f" templates give; they are kept (--label starts a new file)",
            file=sys.stderr,
        )


def _changed(row: Row, match: JudgeMatch) -> bool:
    order = int(row.get("model_1", row.get("model")) != match.models[0])
    prompt = row.get("user_prompt", row.get("g1_user_prompt"))
    return prompt != match.prompt(order, row.get("nonce", ""))


def _dry_run(matches: Sequence[JudgeMatch], path: Path, caller: Caller) -> None:
    """Tokens are estimated as a quarter of the characters, and at most --max_tokens for a reply."""
    done = {key_of_row(row) for row in read_rows(path, torn_end=True)}
    todo = [match for match in matches if match.key not in done]
    calls = [(match, order) for match in todo for order in range(len(match.shown))]
    prompt_tok = sum(len(match.system()) + len(match.prompt(order)) for match, order in calls) // 4
    output_tok = len(calls) * (FLAGS.max_tokens if FLAGS.verdict == "parse" else 1)
    usd = caller.prices.usd(prompt_tok, output_tok)
    figures: dict[str, Any] = {
        "matches": len(matches),
        "to_judge": len(todo),
        "calls": len(calls),
        "usd_at_most": usd,
    }
    figures |= {"prompt_tok_estimate": prompt_tok, "output_tok_at_most": output_tok, "file": str(path)}
    if FLAGS.json:
        command_line.print_json(figures)
        return
    print(
        f"{len(todo)} of {len(matches)} matches are not judged yet: {len(calls)} calls,"
        f" about {prompt_tok} prompt tokens and at most {output_tok} output tokens,"
        f" at most {usd:.2f} USD; nothing was asked"
    )
