"""Tokenized corpora on disk, memory-mapped when read.

A token folder holds `tokenizer.json`, whose end-of-text token separates documents (one trained here is
byte-level BPE, and that token has id 0); for each of the parts train and validation a `PART.bin`
(little-endian token ids, a separator before every document) and, if some tokens do not count in the loss, a
`PART.learn.bin` (the loss mask, one byte per token); `heldout.jsonl` (one {"path", "ids"} per document); and
`manifest.json`, which is written last: a folder without it is incomplete.

Tokenizing is resumable: documents are grouped into shards, and finished shards are kept.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixattn import hf
from mixattn.tools import files
from train import corpus

SEPARATOR = "<|file|>"
SEPARATOR_ID = 0
_MASK = "_learn"  # names the loss mask inside shards; as older versions wrote it
_SHARD_CHARS = 4 << 20
_TOKENIZER_CHARS = 64 << 20  # text that the tokenizer is trained on


@dataclass(frozen=True)
class TokenizedCorpus:
    """An opened token folder. The loss masks are None if every token counts in the loss."""

    folder: Path
    train: np.ndarray
    validation: np.ndarray
    train_loss_mask: np.ndarray | None
    validation_loss_mask: np.ndarray | None
    manifest: dict[str, Any]

    @property
    def tokenizer(self) -> Tokenizer:
        return hf.read_tokenizer(self.folder / "tokenizer.json")

    @property
    def separator(self) -> int:
        """The id before every document; 0 in folders of older versions."""
        return int(self.manifest.get("separator", SEPARATOR_ID))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of validation text per token; converts nats per token to bits per byte."""
        counts = self.manifest["parts"]["validation"]
        return counts["bytes"] / counts["tokens"]


def is_whole(folder: Path) -> bool:
    """Whether `folder` is a complete token folder."""
    return (folder / "manifest.json").is_file()


def open_folder(folder: Path) -> TokenizedCorpus:
    """Opens a folder that `write` wrote.

    Raises:
      ValueError: it is incomplete, or the size of a file differs from the manifest.
    """
    if not is_whole(folder):
        raise ValueError(
            f"{folder} has no manifest.json: it is not a token folder, or writing it was interrupted"
        )
    manifest = files.read_json(folder / "manifest.json")
    mapped: dict[str, np.ndarray | None] = {}
    for part in ("train", "validation"):
        length = manifest["parts"][part]["tokens"]
        mapped[part] = _map(folder / f"{part}.bin", np.dtype(manifest["dtype"]), length)
        mapped[f"{part}_loss_mask"] = (
            _map(folder / f"{part}.learn.bin", np.dtype("uint8"), length) if manifest["learn"] else None
        )
    return TokenizedCorpus(folder=folder, manifest=manifest, **mapped)  # type: ignore[arg-type]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer of at most `vocab_size` entries; id 0 is the separator."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def write(
    path: str,
    folder: Path,
    *,
    vocab_size: int,
    limit_bytes: int = 0,
    tokenizer: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> TokenizedCorpus:
    """Tokenizes the corpus at `path` into `folder`, resuming an interrupted call.

    Args:
      path, limit_bytes: see `corpus.documents`.
      folder: created if missing; may hold shards of an earlier call for the same corpus.
      vocab_size: of the tokenizer to train.
      tokenizer: a tokenizer.json to use instead.
      report: called with progress messages.

    Raises:
      ValueError: the corpus is missing, has no text, or is too small to fill every part of the split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        trained = hf.read_tokenizer(tokenizer) if tokenizer else None
        if trained is None:
            report(f"training a tokenizer of {vocab_size} entries")
            trained = train_tokenizer(_sample(corpus.documents(path, limit_bytes)), vocab_size)
        with files.whole(folder / "tokenizer.json") as temporary:
            trained.save(str(temporary))
    encoder = hf.read_tokenizer(folder / "tokenizer.json")
    separator = hf.end_token(tokenizer) if tokenizer else encoder.token_to_id(SEPARATOR)
    shards = []
    for documents in _grouped(corpus.documents(path, limit_bytes)):
        shards.append(_shard(folder / "shards", documents, encoder, separator))
        report(f"tokenized {len(shards)} shard{'s' * (len(shards) > 1)}")
    return _join(folder, shards, encoder, separator)


def _sample(documents: Iterable[corpus.Document]) -> Iterator[str]:
    taken = 0
    for document in documents:
        if taken >= _TOKENIZER_CHARS:
            return
        if corpus.part(document.name) == "train":
            taken += len(document.text)
            yield document.text


def _grouped(documents: Iterable[corpus.Document]) -> Iterator[list[corpus.Document]]:
    group: list[corpus.Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= _SHARD_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shard(folder: Path, documents: list[corpus.Document], encoder: Tokenizer, separator: int) -> Path:
    """Encodes one group of documents into an .npz named by its content, unless it exists."""
    folder.mkdir(exist_ok=True)
    content = hashlib.sha256(f"{separator} {encoder.to_str()}".encode())
    for document in documents:
        content.update(f"{document.name}\0{document.text}\0".encode())
    path = folder / f"{content.hexdigest()[:32]}.npz"
    if path.exists():
        return path
    texts = [text for document in documents for text, _ in document.pieces]
    encoded = iter(encoder.encode_batch_fast(texts, add_special_tokens=False))
    arrays: dict[str, list[np.ndarray]] = {f"{p}{kind}": [] for p in corpus.PARTS for kind in ("", _MASK)}
    names, sizes = [], dict.fromkeys(corpus.PARTS, (0, 0))
    for document in documents:
        part = corpus.part(document.name)
        ids = [np.array([separator], np.int32)]
        loss_mask = [np.array([all(in_loss for _, in_loss in document.pieces)])]
        for _, in_loss in document.pieces:
            ids.append(np.asarray(next(encoded).ids, dtype=np.int32))
            loss_mask.append(np.full(len(ids[-1]), in_loss))
        arrays[part].append(np.concatenate(ids))
        arrays[part + _MASK].append(np.concatenate(loss_mask))
        sizes[part] = (sizes[part][0] + 1, sizes[part][1] + len(document.text.encode()))
        if part == "heldout":
            names.append((document.name, len(arrays[part][-1])))
    with files.whole(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            **{name: np.concatenate([np.zeros(0, np.bool_), *a]) for name, a in arrays.items()},  # type: ignore[arg-type]
            heldout_names=np.array(json.dumps(names)),
            sizes=np.array(json.dumps(sizes)),
        )
    return path


def _join(folder: Path, shards: list[Path], encoder: Tokenizer, separator: int) -> TokenizedCorpus:
    """Concatenates the shards into the final files, the manifest last, and removes the shards."""
    dtype = np.dtype("<u2" if encoder.get_vocab_size() <= 1 << 16 else "<u4")
    parts = {part: {"documents": 0, "bytes": 0, "tokens": 0} for part in corpus.PARTS}
    all_in_loss = True
    outputs = {f"{p}{k}": folder / f"{p}{k}" for p in ("train", "validation") for k in (".bin", ".learn.bin")}
    for path in outputs.values():
        path.unlink(missing_ok=True)
    with files.whole(folder / "heldout.jsonl") as temporary, temporary.open("w") as heldout:
        for shard in shards:
            with np.load(shard) as arrays:
                for part, (documents, size) in json.loads(str(arrays["sizes"])).items():
                    parts[part]["documents"] += documents
                    parts[part]["bytes"] += size
                    parts[part]["tokens"] += len(arrays[part])
                for part in ("train", "validation"):
                    all_in_loss &= bool(arrays[part + _MASK].all())
                    with outputs[f"{part}.bin"].open("ab") as file:
                        arrays[part].astype(dtype).tofile(file)
                    with outputs[f"{part}.learn.bin"].open("ab") as file:
                        arrays[part + _MASK].astype(np.uint8).tofile(file)
                start = 0
                for name, length in json.loads(str(arrays["heldout_names"])):
                    # Without the separator, which the server adds.
                    ids = arrays["heldout"][start + 1 : start + length].tolist()
                    heldout.write(json.dumps({"path": name, "ids": ids}) + "\n")
                    start += length
    _refuse_empty(parts)
    if all_in_loss:
        for part in ("train", "validation"):
            outputs[f"{part}.learn.bin"].unlink()
    manifest = {
        "dtype": dtype.str,
        "vocab_size": encoder.get_vocab_size(),
        "separator": separator,
        "learn": not all_in_loss,
        "parts": parts,
    }
    files.write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return open_folder(folder)


def _refuse_empty(parts: Mapping[corpus.Part, dict[str, int]]) -> None:
    total = sum(counts["documents"] for counts in parts.values())
    if not total:
        raise ValueError("the corpus holds no text: every file is empty or not UTF-8")
    for part, counts in parts.items():
        if not counts["documents"]:
            raise ValueError(
                f"the corpus has {total} documents and none of them falls into the {part} part; add more"
            )


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    size = path.stat().st_size if path.exists() else 0
    if size != length * dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes, its manifest says {length * dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
