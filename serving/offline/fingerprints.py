"""What an answer was computed from, in a few characters: the request, and the model.

A resumed run keeps an answer only if both are the same. Imports no jax.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.request import Request

_SAMPLES, _SAMPLE_BYTES = 64, 4096
_WHOLE_BYTES = 1 << 20  # of every file; smaller ones are read whole
_SUFFIXES = {".json", ".safetensors", ".jinja", ".gguf"}


def of_request(request: Request) -> str:
    """Of everything that its tokens depend on; the client and the deadline do not count."""
    sampling = dataclasses.asdict(request.sampling)
    sampling["logit_bias"] = sorted(sampling["logit_bias"].items())
    what = {"id": request.id, "prompt_ids": request.prompt_ids, "sampling": sampling}
    if request.keep is not None:
        what["keep"] = dataclasses.asdict(request.keep)
    return _short(hashlib.sha256(json.dumps(what, sort_keys=True).encode()))


def of_model(path: Path, **settings: Any) -> str:
    """Of a checkpoint's files and of how it is run (`settings`).

    Of a large file its size, its beginning and samples all over it are read: two models that somebody trained
    differ there, a change of a few bytes may not be seen.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for file in [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES):
        digest.update(f"{'' if file == path else file.name} {file.stat().st_size}\n".encode())
        for part in _parts(file):
            digest.update(part)
    return _short(digest)


def _parts(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as opened:
        yield opened.read(_WHOLE_BYTES)
        rest = size - _WHOLE_BYTES
        for i in range(_SAMPLES if rest > 0 else 0):
            opened.seek(_WHOLE_BYTES + max(0, rest - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            yield opened.read(_SAMPLE_BYTES)


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])
