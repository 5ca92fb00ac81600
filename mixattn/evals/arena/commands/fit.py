"""Ratings of models from pairwise votes, with intervals and the range of places each can stand in.

    python -m mixattn.evals arena fit --votes=votes.parquet
    python -m mixattn.evals arena fit --votes=votes.jsonl --cluster=judge --json
    python -m mixattn.evals arena fit --votes=votes.csv --weighting=ipw_empirical --anchor=MODEL
    python -m mixattn.evals arena fit --votes=votes.jsonl --category=language=English --style

Votes are parquet, JSON lines, a JSON list or CSV with the fields question_id, model_a, model_b, winner
(model_a, model_b, tie or tie (bothbad)), judge, anony, language, tstamp. Votes with anony false are read, not
used. A rating is anchor_rating + 400/ln 10 x (score - reference); se and interval are of that difference.
"""

import sys
import time
from typing import Any

from absl import flags

from mixattn.evals.arena.commands import command_line
from mixattn.evals.arena.stats.counts import WEIGHTINGS
from mixattn.evals.arena.stats.ranking import CLUSTERS, FEW_CLUSTERS, INTERVALS, TIES, Options, rank_models
from mixattn.evals.arena.stats.ranks import RULES

FLAGS = flags.FLAGS


def start(argv: list[str]) -> None:
    define_flags()
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
    command_line.run(__name__, _main, argv)


def define_flags() -> None:
    """The flags of Options, and where the votes are."""
    flags.DEFINE_string(
        "votes", None, "File of votes: .parquet, .jsonl, .json or .csv.", module_name=__name__
    )
    flags.DEFINE_enum(
        "weighting",
        "none",
        WEIGHTINGS,
        "Inverse-probability weights: of the logged pair_probability, or of pair counts.",
    )
    flags.DEFINE_integer("min_pair_count", 50, "Smallest count that --weighting=ipw_empirical divides by.", 1)
    flags.DEFINE_string(
        "anchor", "mean", "What has rating anchor_rating: the mean of all models, or a model."
    )
    flags.DEFINE_float("anchor_rating", 1000.0, "Rating of the anchor, in Elo points.")
    flags.DEFINE_enum(
        "ties",
        "half",
        TIES,
        "A tie is half a win and half a loss, left out, or an outcome of its own (Davidson).",
    )
    flags.DEFINE_enum(
        "intervals", "sandwich", INTERVALS, "Standard errors by sandwich, or percentile bootstrap."
    )
    flags.DEFINE_float(
        "prior_ties", 0.0, "Ties added to every pair that met; gives an undefeated model a finite rating."
    )
    flags.DEFINE_integer("resamples", 1000, "Bootstrap resamples.", 2)
    flags.DEFINE_integer("seed", 0, "Seed of the bootstrap and of the rank rule's draws.", 0)
    flags.DEFINE_enum("cluster", "none", CLUSTERS, "Votes that share this field are dependent.")
    flags.DEFINE_float("alpha", 0.05, "One minus the level of intervals and rank ranges.")
    flags.DEFINE_enum(
        "rank",
        "pairwise",
        RULES,
        "Rule of the rank ranges: differences, chi-square set, or single intervals.",
    )
    flags.DEFINE_string(
        "category", None, "Use votes with this value only: COLUMN=VALUE, e.g. language=English."
    )
    flags.DEFINE_bool("style", False, "Control for style: tokens, headers, lists, bold of conv_metadata.")


def options() -> Options:
    """The parsed flags.

    Raises:
      ValueError: --alpha is out of range.
    """
    names = (
        "weighting",
        "min_pair_count",
        "anchor",
        "anchor_rating",
        "ties",
        "intervals",
        "resamples",
        "seed",
        "prior_ties",
    )
    given = {name: FLAGS[name].value for name in (*names, "cluster", "alpha", "rank", "style")}
    command_line.fraction("alpha", FLAGS.alpha)
    return Options(**given)


def ranked() -> dict[str, Any]:
    """The report of the votes and options that the flags name."""
    chosen = options()
    chosen.check()
    started = time.perf_counter()
    columns = chosen.columns() + ([FLAGS.category.partition("=")[0]] if FLAGS.category else [])
    votes = command_line.votes(FLAGS.votes, columns)
    if FLAGS.category:
        votes = votes.in_category(FLAGS.category)
    load_s = time.perf_counter() - started
    report = rank_models(votes, chosen)
    return report | {"seconds": {"load": load_s, **report["seconds"]}}


def _main() -> None:
    report = ranked()
    if FLAGS.json:
        command_line.print_json(report)
        return
    header = [
        "model",
        "rating",
        "se",
        "lower",
        "upper",
        "rank",
        "marginal",
        "battles",
        "wins",
        "losses",
        "ties",
    ]
    print(command_line.table(header, [_row(m) for m in report["models"]]))
    for name, style in report.get("style", {}).items():
        print(f"style {name}: {style['beta']:+.3f} (se {style['se']:.3f})")
    if report.get("clusters", FEW_CLUSTERS) < FEW_CLUSTERS:
        print(f"warning: only {report['clusters']} clusters: the intervals are too narrow", file=sys.stderr)
    level = f"{1 - report['alpha']:.0%} intervals ({report['intervals']}, clusters: {report['cluster']})"
    print(f"{report['used']} of {report['votes']} votes; {level}; rank: {report['rank']}", file=sys.stderr)


def _row(model: dict[str, Any]) -> list[str]:
    places = ["-".join(map(str, model[rule])) for rule in ("rank", "rank_marginal")]
    numbers = [f"{model[name]:.1f}" for name in ("rating", "se", "lower", "upper")]
    return [
        model["model"],
        *numbers,
        *places,
        *(str(model[n]) for n in ("battles", "wins", "losses", "ties")),
    ]
