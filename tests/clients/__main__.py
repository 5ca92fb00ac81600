"""Starts our server on a small random model, or a cluster of them, and lets every client talk to it;
`make clients` runs both.

    python -m tests.clients --peer=.venv-clients/bin/python
    python -m tests.clients --peer=.venv-clients/bin/python --only=openai_python,lm_eval_likelihoods
    python -m tests.clients --peer=.venv-clients/bin/python --workers=2    a cluster; one worker is killed

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
from tests.serving.cluster.cluster_process import ClusterProcess
from tests.serving.http.tiny_server import ROOT, ServerProcess, checkpoint

HERE = Path(__file__).parent
LONGEST = 4096  # tokens are bytes, and the judge's prompts are long
OTHERS = ("openai_python", "litellm_routes", "langchain_chat", "lm_eval_likelihoods", "schemathesis_fuzz")
OURS = ("own_llm", "judge_and_town")
ON_CLUSTERS = ("openai_kill",)

_PEER = flags.DEFINE_string("peer", ".venv-clients/bin/python", "Python that has the other packages.")
_ONLY = flags.DEFINE_list("only", [], "Scripts to run; by default all that the server is for.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Workers of a cluster; 0: one server.", lower_bound=0)


def main() -> None:
    known = (*OTHERS, *OURS, *(ON_CLUSTERS if _WORKERS.value else ()))
    names = _ONLY.value or known
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"--only names {unknown[0]}; there are {', '.join(known)}")
    peer = Path(_PEER.value)
    if not peer.exists() and not set(names) <= set(OURS):
        raise ValueError(f"--peer={peer} does not exist; `make clients` makes it")
    long = f"--max_model_len={LONGEST}"
    server = ClusterProcess(long, workers=_WORKERS.value) if _WORKERS.value else ServerProcess(long)
    try:
        with tempfile.TemporaryDirectory() as folder:
            expected = Path(folder) / "expected.json"
            offline.write(checkpoint(), LONGEST, expected)
            url = f"http://127.0.0.1:{server.ready().port}"
            failed = [name for name in names if not passes(name, url, peer, expected)]
        server.until_idle()
    finally:
        server.close()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def passes(name: str, url: str, peer: Path, expected: Path) -> bool:
    """Runs one script; what it printed is shown, and why it failed if it did."""
    python = sys.executable if name in OURS else str(peer)
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
