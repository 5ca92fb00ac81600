"""Our own programs through the server by its URL: the judge answers and judges, the town runs."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

URL, MODEL = sys.argv[1:3]


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench, url = f"--bench={folder}/bench", f"--url={URL}/v1"
        judge = "mixattn.evals", "judge"
        run(*judge, "questions", bench)
        run(*judge, "answer", bench, f"--model={MODEL}", url, "--max_tokens=8", "--first_n=2")
        [answers] = Path(folder, "bench/model_answer").glob("*.jsonl")
        assert len(lines(answers)) == 2
        run(
            *judge,
            "run",
            bench,
            f"--judge={MODEL}",
            url,
            "--max_tokens=8",
            "--first_n=2",
            "--verdict=likelihood",
        )
        [judged] = Path(folder, "bench/model_judgment").glob("*.jsonl")
        verdicts = lines(judged)
        town = run(
            *("serving.metropolis", "run", f"--workdir={folder}/town", "--llm=http", url, f"--model={MODEL}"),
            *("--residents=3", "--steps=400", "--json"),
        )
        told = json.loads(town)
    assert told["calls"] > 0
    print(
        f"judge and town: ok, 2 questions answered, {len(verdicts)} verdicts by log-probabilities, "
        f"{told['calls']} calls of 3 residents in {told['steps']} steps"
    )


if __name__ == "__main__":
    main()
