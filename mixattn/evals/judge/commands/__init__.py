"""Has a language model judge answers, and says how far it can be trusted. Files are in FastChat's layout.

    python -m mixattn.evals judge questions --bench=runs/bench             our 80 questions and references
    python -m mixattn.evals judge answer --bench=runs/b --model=m --url=http://HOST/v1
    python -m mixattn.evals judge run --bench=runs/bench --judge=big --url=http://HOST/v1
    python -m mixattn.evals judge show --mode=pairwise_all --judgments=big_pair.jsonl
    python -m mixattn.evals judge agreement --judges=big-pair,human --votes=big_pair.jsonl,human.jsonl
    python -m mixattn.evals judge bias --bench=runs/bench --judge=big --url=http://HOST/v1

Without a server: --url=scripted:echo or scripted:plan answers, --url=scripted:fair or scripted:often_first
judges. `--help` after a command lists its flags.
"""

from mixattn.tools.dispatch import dispatch

COMMANDS = ("questions", "answer", "run", "show", "agreement", "bias")


def start(argv: list[str]) -> None:
    """Runs the subcommand named by the first argument; exits with code 2 if there is none of that name."""
    dispatch(argv, __doc__, {name: f"mixattn.evals.judge.commands.{name}" for name in COMMANDS})
