"""The answers of a run on disk: `run.json` with its settings, `answers.jsonl` with a line for each answer.

A line is written whole and flushed; a torn last line is dropped, so that a killed run goes on where it was.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixattn.tools import files

type Answer = dict[str, Any]
KEY = ("task", "length", "depth", "index", "policy", "mode")


class AnswerLog:
    """Answers by their key.

    Args:
      folder: of the run; made if it is missing.
      settings: what gives answers their meaning: the checkpoint, the seed.

    Raises:
      ValueError: the folder holds answers of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "answers.jsonl"
        about = folder / "run.json"
        if about.exists():
            known = files.read_json(about)
            for name in settings | known:
                if known.get(name) != settings.get(name):
                    raise ValueError(
                        f"{folder} holds answers with {name}={known.get(name)}, not {settings.get(name)}; "
                        "name another --workdir"
                    )
        else:
            files.write_json(about, settings)
        self.answers = {key_of(answer): answer for answer in read(self.path)}
        files.write_text(self.path, "".join(_line(answer) for answer in self.answers.values()))

    def add(self, answers: Iterable[Answer]) -> None:
        """Appends answers."""
        new = list(answers)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, new)))
            file.flush()
        self.answers |= {key_of(answer): answer for answer in new}


def read(path: Path) -> list[Answer]:
    """The answers in a file, without a torn last line; none if there is no file.

    Raises:
      ValueError: a line that is no answer, with its number.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    answers = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            answer = json.loads(line)
            key_of(answer)
        except (ValueError, KeyError, TypeError) as why:
            raise ValueError(f"{path}, line {number} is no answer of this suite: {why}") from why
        answers.append(answer)
    return answers


def key_of(answer: Answer) -> tuple[Any, ...]:
    """What an answer is an answer to."""
    return tuple(answer[name] for name in KEY)


def _line(answer: Answer) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"
