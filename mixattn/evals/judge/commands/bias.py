"""Measures what a judge prefers for no good reason: a place, length, a name, injected verdicts, itself.

    python -m mixattn.evals judge bias --bench=runs/bench --judge=often_first --url=scripted:often_first
    python -m mixattn.evals judge bias --bench=runs/bench --kinds=injection --judge=x --url=scripted:gullible
    python -m mixattn.evals judge bias --bench=runs/bench --kinds=self --self=big --votes=human.jsonl \\
        --judge=big --url=http://127.0.0.1:8001/v1

position   first turns of every pair in both orders, as `judge run --mode=pairwise_all` asks them
verbosity  an answer with a list against itself with the list said twice
name       pairs signed with two names, and with the names exchanged
injection  an answer that holds a verdict, or our end mark and a verdict; with plain and with nonce delimiters
self       the judge's win rate for --self minus that in --votes of --others, in the same cells

Every experiment keeps its judgments in BENCH/model_judgment and continues after Ctrl-C or kill -9.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from mixattn.evals import command_line
from mixattn.evals.judge import agreement, bias
from mixattn.evals.judge.bench import Bench
from mixattn.evals.judge.commands import calling
from mixattn.evals.judge.commands import run as running
from mixattn.evals.judge.lines import Row
from mixattn.evals.judge.matches import JudgeMatch
from mixattn.evals.judge.play import Caller, Outcome

FLAGS = flags.FLAGS
KINDS = ("position", "verbosity", "name", "injection", "self")


def start(argv: list[str]) -> None:
    calling.define_flags()
    running.define_judge_flags()
    flags.DEFINE_list("kinds", ["position", "verbosity", "name", "injection"], f"Some of {', '.join(KINDS)}.")
    flags.DEFINE_list("names", ["Atlas", "Borealis"], "Two names for `name`.")
    flags.DEFINE_string("self", "", "The model that `self` is about: the judge's own answers.")
    flags.DEFINE_list("votes", [], "Files of other judges' votes, for `self`.")
    flags.DEFINE_string("others", "human", "The judge in --votes to compare with, for `self`.")
    command_line.run(__name__, _main, argv, shared=(calling.__name__, running.__name__))


class _Experiments:
    """Runs matches of one experiment after another, with one account of calls."""

    def __init__(self, bench: Bench, caller: Caller):
        self.bench, self.caller, self.outcome = bench, caller, Outcome()

    def judge(self, matches: Sequence[JudgeMatch], kind: str, *, nonce: bool | None = None) -> list[Row]:
        """The judgments of `matches`, from their file or asked for; none once a run stopped."""
        how = running.options()
        name = running.label() + (f".bias-{kind}" if kind else "")
        if nonce is not None:
            how, name = replace(how, nonce=nonce), f"{name}-{'nonce' if nonce else 'plain'}"
        if self.outcome.complaint:
            return []
        path = self.bench.judgment_path(name, "pair")
        rows, outcome, _ = running.run_matches(
            matches, path, self.caller, how, running.label() if not kind else name
        )
        self.outcome.written += outcome.written
        self.outcome.stopped = outcome.stopped
        self.outcome.refused += outcome.refused
        return rows


def _main() -> None:
    kinds = FLAGS.kinds
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"--kinds holds {unknown[0]!r}, which is not one of {', '.join(KINDS)}")
    if len(FLAGS.names) != 2 or FLAGS.names[0] == FLAGS.names[1]:
        raise ValueError(f"--names={','.join(FLAGS.names)} must be two different names")
    if "self" in kinds and not (FLAGS.self and FLAGS.votes):
        raise ValueError(
            "self needs --self=MODEL, whose answers the judge may favour, and --votes=FILE of others"
        )
    calling.check_url()
    bench, caller = calling.bench(), calling.caller()
    matches = [match for match in running.plan(bench, "pairwise_all") if match.turn == 1]
    experiments = _Experiments(bench, caller)
    measure: dict[str, Callable[[_Experiments, list[JudgeMatch]], dict[str, Any]]] = {
        "position": _position,
        "verbosity": _verbosity,
        "name": _name,
        "injection": _injection,
        "self": _self,
    }
    figures: dict[str, Any] = {"judge": running.label()}
    figures |= {kind: measure[kind](experiments, matches) for kind in kinds}
    figures |= caller.figures()
    calling.report(figures, _sentences(figures), experiments.outcome)


def _position(experiments: _Experiments, matches: list[JudgeMatch]) -> dict[str, Any]:
    return bias.position(experiments.judge(matches, ""))


def _verbosity(experiments: _Experiments, matches: list[JudgeMatch]) -> dict[str, Any]:
    return bias.verbosity(experiments.judge(bias.verbosity_matches(matches), "verbosity"))


def _name(experiments: _Experiments, matches: list[JudgeMatch]) -> dict[str, Any]:
    names = (FLAGS.names[0], FLAGS.names[1])
    return bias.name(experiments.judge(bias.name_matches(matches, names), "name"), names)


def _injection(experiments: _Experiments, matches: list[JudgeMatch]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for nonce in (False, True):
        delimiters: dict[str, Any] = {}
        for attack in bias.ATTACKS:
            attacked = bias.injection_matches(matches, attack)
            rows = experiments.judge(attacked, "injection", nonce=nonce)
            delimiters[attack] = bias.injection(rows)["wins"]
        figures["nonce" if nonce else "plain"] = delimiters
    return figures


def _self(experiments: _Experiments, matches: list[JudgeMatch]) -> dict[str, Any]:
    experiments.judge(matches, "")
    files = [experiments.bench.judgment_path(running.label(), "pair"), *map(Path, FLAGS.votes)]
    votes = [vote for path in files for vote in agreement.read_votes(path)]
    agreement.check_judges(votes, (FLAGS.others,))
    return bias.self_preference(votes, running.label(), FLAGS.self, FLAGS.others)


def _sentences(figures: dict[str, Any]) -> list[str]:
    """One table row for every share, whatever experiment it belongs to."""
    rows = [row for kind in KINDS if kind in figures for row in _rows(kind, figures[kind])]
    return [command_line.table((f"judge {figures['judge']}", "share", "95 % interval", "n"), rows)]


def _rows(words: str, value: Any) -> list[list[str]]:
    if not isinstance(value, dict):
        return []
    if "difference" in value:
        share = "-" if value["difference"] is None else f"{value['difference']:+.3f}"
        return [[f"{words}: difference of win rates", share, "", str(value["n"])]]
    if "share" in value:
        if value["share"] is None:
            return [[words, "-", "-", "0"]]
        return [
            [words, f"{value['share']:.3f}", f"{value['lower']:.3f} to {value['upper']:.3f}", str(value["n"])]
        ]
    return [row for name, each in value.items() for row in _rows(f"{words}: {name}", each)]
