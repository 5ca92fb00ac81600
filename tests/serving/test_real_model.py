"""The real model behind the commands that serve it: requests of every form, and programs that are kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixattn import hf

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "smollm2"
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not (MODEL / "config.json").exists(), reason="models/smollm2 is missing (make model)"),
]
CAPITALS = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Spain": "Madrid"}


def _lines() -> list[dict[str, object]]:
    """Five each of: text, ids, messages, and the lines of OpenAI's batch files."""
    encode = hf.load_tokenizer(MODEL).encode
    lines: list[dict[str, object]] = []
    for country in CAPITALS:
        text = f"The capital of {country} is"
        asked = [{"role": "user", "content": f"What is the capital of {country}? Answer with its name."}]
        body = {"model": "smollm2", "messages": asked, "max_tokens": 12, "temperature": 0}
        lines += [
            {"id": f"text {country}", "prompt": text, "max_tokens": 6, "temperature": 0},
            {"id": f"ids {country}", "prompt_ids": encode(text).ids, "max_tokens": 6, "temperature": 0},
            {"id": f"chat {country}", "messages": asked, "max_tokens": 12, "temperature": 0},
            {"custom_id": f"batch {country}", "method": "POST", "url": "/v1/chat/completions", "body": body},
        ]
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, str]:
    """What `serving.main` answered, by id, as text."""
    (folder / "ask.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _lines()))
    done = _serve(folder, "answers.jsonl")
    assert done.returncode == 0, done.stderr
    texts = {}
    for line in (folder / "answers.jsonl").read_text().splitlines():
        answer = json.loads(line)
        texts[answer.get("custom_id") or answer["id"]] = json.dumps(answer)
    return texts


def _serve(folder: Path, out: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.main", f"--model={MODEL}", f"--requests={folder}/ask.jsonl"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    return subprocess.run(
        [*command, f"--out={folder}/{out}", "--kv_memory=256MiB"],
        cwd=ROOT,
        env=env | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_twenty_requests_of_every_form_are_answered(answers):
    assert len(answers) == 20
    named = [
        sum(city in answers[f"{form} {country}"] for country, city in CAPITALS.items()) for form in FORMS
    ]
    # 135 M parameters do not know every capital; all forms ask the same model.
    assert min(named) >= 3, named


FORMS = ("text", "ids", "chat", "batch")


def test_text_and_its_ids_are_the_same_request(answers):
    for country in CAPITALS:
        text, ids = (json.loads(answers[f"{form} {country}"]) for form in ("text", "ids"))
        assert text["output_ids"] == ids["output_ids"]


def test_a_second_start_compiles_nothing(answers, folder):
    kept = sorted((folder / "cache" / "mixattn" / "programs").iterdir())
    done = _serve(folder, "again.jsonl")
    assert done.returncode == 0, done.stderr
    assert sorted((folder / "cache" / "mixattn" / "programs").iterdir()) == kept
    first, again = (_by_id(folder / name) for name in ("answers.jsonl", "again.jsonl"))
    assert first == again


def _by_id(path: Path) -> dict[str, str]:
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        a.get("custom_id") or a["id"]: a.get("output_ids") or a["response"]["body"]["choices"] for a in read
    }
