"""Starts our server on a small random model and lets every client talk to it; `make clients` runs it.

    python -m tests.clients --peer=.venv-clients/bin/python
    python -m tests.clients --peer=.venv-clients/bin/python --only=openai_python,lm_eval_likelihoods

One line a client. Exit status 1 if one of them fails.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags

from mixattn.tools import cli
from tests.clients import offline
from tests.serving.http.tiny_server import ROOT, ServerProcess, checkpoint

HERE = Path(__file__).parent
LONGEST = 4096  # tokens are bytes, and the judge's prompts are long
OTHERS = ("openai_python", "litellm_routes", "langchain_chat", "lm_eval_likelihoods", "schemathesis_fuzz")
OURS = ("own_llm", "judge_and_town")

_PEER = flags.DEFINE_string("peer", ".venv-clients/bin/python", "Python that has the other packages.")
_ONLY = flags.DEFINE_list("only", [*OTHERS, *OURS], "Scripts to run.")


def main() -> None:
    if unknown := sorted(set(_ONLY.value) - {*OTHERS, *OURS}):
        raise ValueError(f"--only names {unknown[0]}; there are {', '.join((*OTHERS, *OURS))}")
    peer = Path(_PEER.value)
    if not peer.exists() and set(_ONLY.value) & set(OTHERS):
        raise ValueError(f"--peer={peer} does not exist; `make clients` makes it")
    server = ServerProcess(f"--max_model_len={LONGEST}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            expected = Path(folder) / "expected.json"
            offline.write(checkpoint(), LONGEST, expected)
            url = f"http://127.0.0.1:{server.ready().port}"
            failed = [name for name in _ONLY.value if not passes(name, url, peer, expected)]
        server.until_idle()
    finally:
        server.close()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def passes(name: str, url: str, peer: Path, expected: Path) -> bool:
    """Runs one script; what it printed is shown, and why it failed if it did."""
    python = str(peer) if name in OTHERS else sys.executable
    more = [str(expected)] if name.startswith("lm_eval") else []
    env = {**os.environ, "PYTHONPATH": str(ROOT) if name in OURS else "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(HERE / f"{name}.py"), url, checkpoint().name, *more],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=env,
    )
    print(done.stdout.strip() or f"{name}: FAILED", flush=True)
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr, flush=True)
    return not done.returncode


if __name__ == "__main__":
    cli.run(main)
