"""The answers of an offline run: appended as requests finish, put into the file's order at the end.

A run that is killed leaves whole lines and at most one torn one; the next run keeps the whole ones. What a
line says does not depend on when it was computed, so a resumed run ends with the same file as any other.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixattn.tools.files import write_text
from serving.offline import fingerprints
from serving.offline.answers import Answers
from serving.request import Output, Request


def refuse_others(path: Path, requests: Iterable[Request], model: str) -> None:
    """Raises ValueError if the file answers other questions under the same ids, or was another model's."""
    if not path.exists():
        return
    marks = {request.id: fingerprints.of_request(request) for request in requests}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        try:
            answer = json.loads(line)
            id, mark, of = answer["id"], answer.get("fingerprint"), answer.get("model")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # torn, or refused by `Answers`
        if of is not None and of != model:
            raise ValueError(
                f"{path} line {number} is of model {of}, this is {model}; name another --workdir"
            )
        if mark is not None and id in marks and mark != marks[id]:
            raise ValueError(
                f"{path} line {number} answers {id!r} with prompt and sampling {mark}, now they are"
                f" {marks[id]}; name another --workdir"
            )


def timeless(output: Output) -> Output:
    """The output without what depends on the run: times, and tokens found in a cache."""
    return dataclasses.replace(output, arrival_s=0.0, admit_s=0.0, first_token_s=0.0, finish_s=0.0, hit_tok=0)


def put_in_order(path: Path, ids: Sequence[str]) -> None:
    """Rewrites the file in the order of `ids`, outputs of one request by index; atomic."""
    place: Mapping[str, int] = {id: i for i, id in enumerate(ids)}

    def key(line: str) -> tuple[int, int]:
        answer = json.loads(line)
        return place.get(answer["id"], len(place)), int(answer.get("index", 0))

    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    write_text(path, "".join(line + "\n" for line in sorted(lines, key=key)))


def answers(
    path: Path, requests: Sequence[Request], model: str, carried: Mapping[str, Mapping[str, object]]
) -> Answers:
    """Opens the file.

    Raises:
      ValueError: it is another run's (see `refuse_others`), or another run writes to it.
    """
    refuse_others(path, requests, model)
    return Answers(path, requests, model=model, carried=carried)
