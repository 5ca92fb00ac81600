"""Token files of other programs: a .bin file is nothing but little-endian uint16 or uint32 token ids.

The end of the file validates unless there is a file of its own for that. Nothing is held out as prompts.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mixattn import hf
from mixattn.tools import files
from train import tokens
from train.corpus import Corpus, as_request

DTYPES = {"uint16": "<u2", "uint32": "<u4"}
_CHUNK = 1 << 20  # ids


def is_token_file(path: str) -> bool:
    """Whether the corpus at `path` is a file of token ids."""
    return path.endswith(".bin")


def request(source: Corpus, dtype: str, tokenizer: Path | None) -> dict[str, object]:
    """What decides the content of a token folder, as JSON."""
    return {**as_request(source), "token_dtype": dtype, "tokenizer": tokens.digest_of(tokenizer)}


def write(
    source: Corpus,
    folder: Path,
    *,
    dtype: str,
    tokenizer: Path | None,
    separator: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> tokens.TokenizedCorpus:
    """Writes a token folder from the .bin file of `source`.

    Args:
      dtype: of `DTYPES`.
      tokenizer: the tokenizer.json that made the ids; the exported model carries it.
      separator: text of its token that goes before every document; "" = the one that it ends texts with.

    Raises:
      ValueError: a file is missing, empty or cut off, holds an id that the tokenizer does not have, or there
        is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(
            f"{source.path} holds token ids: data.tokenizer must name the tokenizer.json that made them"
        )
    if source.limit_bytes:
        raise ValueError(f"data.limit_bytes is {source.limit_bytes}; a .bin file is read whole")
    encoder, separator_id = hf.read_tokenizer(tokenizer), hf.end_token(tokenizer, separator)
    parts = _parts(source, dtype)
    for path, ids in parts.values():
        _check_ids(path, ids, encoder.get_vocab_size())
    tokens.start_request(folder, request(source, dtype, tokenizer))
    with files.whole(folder / "tokenizer.json") as temporary:
        encoder.save(str(temporary))
    counts = {"heldout": {"documents": 0, "bytes": 0, "tokens": 0}}
    for part, (path, ids) in parts.items():
        report(f"{part}: {len(ids)} tokens of {path}")
        with files.whole(folder / f"{part}.bin") as temporary, temporary.open("wb") as file:
            for start in range(0, len(ids), _CHUNK):
                np.asarray(ids[start : start + _CHUNK]).tofile(file)
        size = _text_bytes(ids, encoder) if part == "validation" else 0
        counts[part] = {"documents": 1, "bytes": size, "tokens": len(ids)}
    files.write_text(folder / "heldout.jsonl", "")
    left_out = {"files": 0, "named": []}
    manifest: dict[str, object] = {
        "dtype": DTYPES[dtype],
        "vocab_size": encoder.get_vocab_size(),
        "learn": False,
    }
    manifest["separator"] = separator_id
    files.write_json(folder / "manifest.json", {**manifest, "parts": counts, "left_out": left_out})
    return tokens.open_folder(folder)


def _parts(source: Corpus, dtype: str) -> dict[str, tuple[str, np.ndarray]]:
    ids = _map(source.path, dtype)
    if source.validation_path:
        return {
            "train": (source.path, ids),
            "validation": (source.validation_path, _map(source.validation_path, dtype)),
        }
    cut = len(ids) - round(len(ids) * source.validation_share)
    return {"train": (source.path, ids[:cut]), "validation": (source.path, ids[cut:])}


def _map(path: str, dtype: str) -> np.ndarray:
    file, kind = Path(path), np.dtype(DTYPES[dtype])
    if not file.is_file():
        raise ValueError(f"there is no token file {path}")
    size = file.stat().st_size
    if not size or size % kind.itemsize:
        raise ValueError(f"{path} has {size} bytes, which are no whole number of {dtype} token ids")
    return np.memmap(file, dtype=kind, mode="r")


def _check_ids(path: str, ids: np.ndarray, vocab_size: int) -> None:
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        if len(above := np.flatnonzero(chunk >= vocab_size)):
            at = int(above[0])
            raise ValueError(
                f"{path} holds the token id {chunk[at]} at {start + at}, the tokenizer has {vocab_size} ids;"
                " data.token_dtype or data.tokenizer may be wrong"
            )


def _text_bytes(ids: np.ndarray, encoder: Tokenizer) -> int:
    """Bytes of the text that the ids spell; off by a few where a character is cut between two chunks."""
    chunks = (ids[start : start + _CHUNK].tolist() for start in range(0, len(ids), _CHUNK))
    return sum(len(encoder.decode(chunk).encode()) for chunk in chunks)
