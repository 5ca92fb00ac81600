"""What the commands that call a model share: flags, retries and prices, progress, exit code 1."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from mixattn.evals.command_line import needed, print_json
from mixattn.evals.judge import scripted
from mixattn.evals.judge.bench import Bench, Question
from mixattn.evals.judge.play import Caller, Outcome, Prices
from mixattn.evals.llm import LanguageModel, OpenAI, RetryPolicy
from mixattn.tools.progress import ProgressLines

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Declares the flags of every command that calls a model."""
    flags.DEFINE_string("bench", "", "Folder with question.jsonl, model_answer/ and model_judgment/.")
    flags.DEFINE_string(
        "url", "", "OpenAI-compatible server, with its version: http://HOST:PORT/v1; or scripted:NAME."
    )
    flags.DEFINE_string("api_key_env", "", "Environment variable with the API key of the server.")
    flags.DEFINE_integer("parallel", 4, "Number of simultaneous calls.")
    flags.DEFINE_integer("retries", 5, "Retries of a call after HTTP 408, 409, 425, 429, 5xx or a time-out.")
    flags.DEFINE_float("backoff_s", 0.5, "Pause before the first retry, in seconds; it doubles with each.")
    flags.DEFINE_float("timeout_s", 300.0, "Time limit of one attempt, in seconds.")
    flags.DEFINE_float("input_usd_per_mtok", 0.0, "Price of a million prompt tokens, in US dollars.")
    flags.DEFINE_float("output_usd_per_mtok", 0.0, "Price of a million output tokens, in US dollars.")
    flags.DEFINE_float("max_usd", 0.0, "Begin nothing new once this much is spent; 0 means no limit.")
    flags.DEFINE_integer("first_n", 0, "Use the first N questions only; 0 means all.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of sentences.")


def bench() -> Bench:
    """The folder of `--bench`.

    Raises:
      ValueError: the flag is missing or names no folder.
    """
    root = Path(needed("bench", "runs/bench"))
    if not root.is_dir():
        example = f"python -m mixattn.evals judge questions --bench={root}"
        raise ValueError(f"--bench={root} is not a folder; make one with our 80 questions: {example}")
    return Bench(root)


def questions(of: Bench) -> list[Question]:
    """The questions, or the first `--first_n`.

    Raises:
      ValueError: the file is wrong, or --first_n is negative.
    """
    if FLAGS.first_n < 0:
        raise ValueError(f"--first_n is {FLAGS.first_n}; it must not be negative")
    return of.questions()[: FLAGS.first_n or None]


def caller() -> Caller:
    """Retries and prices of the flags.

    Raises:
      ValueError: a number is out of range.
    """
    for name, least in (("parallel", 1), ("retries", 0)):
        if FLAGS[name].value < least:
            raise ValueError(f"--{name} is {FLAGS[name].value}; it must be at least {least}")
    policy = RetryPolicy(
        timeout_s=FLAGS.timeout_s, max_retries=FLAGS.retries, backoff_s=FLAGS.backoff_s, jitter=0.2
    )
    prices = Prices(
        input_usd_per_mtok=FLAGS.input_usd_per_mtok,
        output_usd_per_mtok=FLAGS.output_usd_per_mtok,
        max_usd=FLAGS.max_usd,
    )
    policy.check()
    prices.check()
    return Caller(policy, prices)


def check_url() -> str:
    """`--url`, if it names a script or a server.

    Raises:
      ValueError: it is missing or of another form.
    """
    url = needed("url", "http://127.0.0.1:8000/v1")
    if scripted.model(url) is None and not url.startswith(("http://", "https://")):
        raise ValueError(f"--url={url} is neither http://HOST:PORT/v1 nor scripted:NAME")
    return url


@contextlib.asynccontextmanager
async def opened(name: str) -> AsyncIterator[LanguageModel]:
    """The model `name` behind `--url`.

    Raises:
      ValueError: the URL is wrong, or the environment lacks the key.
    """
    url = check_url()
    if (script := scripted.model(url)) is not None:
        yield script
        return
    key = None
    if FLAGS.api_key_env and not (key := os.environ.get(FLAGS.api_key_env)):
        raise ValueError(f"--api_key_env={FLAGS.api_key_env} is not set in the environment")
    timeout_s = FLAGS.timeout_s or 600.0
    async with OpenAI(url, name, api_key=key, timeout_s=timeout_s, connections=2 * FLAGS.parallel) as model:
        yield model


@contextlib.contextmanager
def progress(words: str, total: int, spent: Caller) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress line on stderr; the function it gives counts one line done."""
    done = 0
    with ProgressLines(console=Console(stderr=True, highlight=False)) as lines:
        line = lines.add(total, words)

        def count(_: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            line.update(done, f"{words}: {done} of {total}, {_spent(spent)}")

        yield count


def _spent(spent: Caller) -> str:
    return f"{spent.usd:.2f} USD" if spent.usd else f"{spent.prompt_tok + spent.output_tok} tokens"


def report(figures: dict[str, Any], sentences: Sequence[str], outcome: Outcome) -> None:
    """Prints the result; exits with code 1 and one sentence if not everything was done."""
    if FLAGS.json:
        print_json({**figures, "complete": not outcome.complaint})
    else:
        print("\n".join(sentences))
    if outcome.complaint:
        kept = f"{outcome.written} finished in this run are kept; the same command continues"
        print(f"error: {' '.join(outcome.complaint.split())}; {kept}", file=sys.stderr)
        sys.exit(1)
