"""Tokenized corpora on disk, memory-mapped when read.

A token folder holds `tokenizer.json`, whose end-of-text token separates documents (one trained here is
byte-level BPE, and that token has id 0); for each of the parts train and validation a `PART.bin`
(little-endian token ids, a separator before every document) and, if some tokens do not count in the loss, a
`PART.learn.bin` (the loss mask, one byte per token); `heldout.jsonl` (one {"path", "ids"} per document);
`request.json` (what was asked for); and `manifest.json`, which is written last: a folder without it is
incomplete.

Tokenizing is resumable: documents are grouped into shards, and finished shards are kept.
"""

import hashlib
import json
import re
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
from train.text_files import LeftOut

SEPARATOR = "<|file|>"
SEPARATOR_ID = 0
_MASK = "_learn"  # names the loss mask inside shards; as older versions wrote it
_SHARD_CHARS = 4 << 20
_TOKENIZER_CHARS = 64 << 20  # text that the tokenizer is trained on
# BPE training takes quadratic time in the length of a word, so that longer runs are cut: DNA, base64, blanks.
_LONG_RUN = re.compile(r"\S{256}|\s{256}")
_LONG_BLANK = re.compile(r"\s{256}")
_NAMED_LEFT_OUT = 1000  # files that the manifest names; the others are counted


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
    source: str | corpus.Corpus,
    folder: Path,
    *,
    vocab_size: int,
    tokenizer: Path | None = None,
    separator: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> TokenizedCorpus:
    """Tokenizes a corpus into `folder`, resuming an interrupted call.

    Args:
      source: the corpus, or its path.
      folder: created if missing; may hold shards of an earlier call for the same corpus. What an interrupted
        call for another corpus left there is removed.
      vocab_size: of the tokenizer to train.
      tokenizer: a tokenizer.json to use instead.
      separator: text of its token that goes before every document; "" = the one that it ends texts with.
      report: called with progress messages.

    Raises:
      ValueError: the corpus is missing, has no text, or is too small to fill every part of the split.
    """
    source = corpus.Corpus(source) if isinstance(source, str) else source
    _check_parts(source)
    start_request(folder, request(source, vocab_size, tokenizer, separator))
    if not (folder / "tokenizer.json").exists():
        trained = hf.read_tokenizer(tokenizer) if tokenizer else None
        if trained is None:
            report(f"training a tokenizer of {vocab_size} entries")
            trained = train_tokenizer(_sample(source), vocab_size)
        with files.whole(folder / "tokenizer.json") as temporary:
            trained.save(str(temporary))
    encoder = hf.read_tokenizer(folder / "tokenizer.json")
    given = tokenizer or folder / "tokenizer.json"
    separator_id = hf.end_token(given, separator if tokenizer else SEPARATOR)
    shards = []
    left_out: list[LeftOut] = []
    for documents in _grouped(source.documents(left_out)):
        shards.append(_shard(folder / "shards", documents, encoder, separator_id))
        report(f"tokenized {len(shards)} shard{'s' * (len(shards) > 1)}")
    if left_out:
        report(f"left out {len(left_out)} files: {corpus.describe(left_out)}")
    return _join(folder, shards, encoder, separator_id, left_out)


def request(
    source: corpus.Corpus, vocab_size: int, tokenizer: Path | None, separator: str = ""
) -> dict[str, object]:
    """What decides the content of a token folder, as JSON."""
    asked = {**corpus.as_request(source), "vocab_size": vocab_size, "tokenizer": digest_of(tokenizer)}
    return asked | ({"separator": separator} if separator else {})


def digest_of(tokenizer: Path | None) -> str:
    """The start of the SHA-256 of a tokenizer.json; "" for none."""
    return hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:32] if tokenizer else ""


def is_written(folder: Path, asked: Mapping[str, object], *, replace: bool = False) -> bool:
    """Whether `folder` is complete and was written for the request `asked`.

    Args:
      replace: answer False for the folder of another request, instead of refusing it.

    Raises:
      ValueError: it was started for another request; the message names what differs.
    """
    before = _recorded(folder)
    if before is None:  # older versions kept no record in runs
        return is_whole(folder)
    # Fields that an older version did not have were as they are by default.
    different = [name for name, value in asked.items() if name in before and before[name] != value]
    if different and not replace:
        name = different[0]
        raise ValueError(
            f"{folder} was started for another request: {name} is {before[name]!r} there and"
            f" {asked[name]!r} here; name another folder or remove that one"
        )
    return is_whole(folder) and not different


def _recorded(folder: Path) -> dict[str, Any] | None:
    """What the folder was written for; None if it has no record."""
    if (folder / "request.json").exists():
        return files.read_json(folder / "request.json")
    if (folder / "asked.json").exists():  # of an older version, which recorded a tokenizer's path
        before = files.read_json(folder / "asked.json")
        return {"path": before["input"], "vocab_size": before["vocab_size"]}
    return None


def start_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Creates `folder` for a request; removes what another one left there unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "request.json"
    before = files.read_json(record) if record.exists() else None
    if before != request:
        for name in ("tokenizer.json", "manifest.json", "heldout.jsonl"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "shards", ignore_errors=True)
        files.write_json(record, request)


def _check_parts(source: corpus.Corpus) -> None:
    """Reads documents until every part has one.

    Raises:
      ValueError: a part gets none.
    """
    seen = dict.fromkeys(source.parts, 0)
    left_out: list[LeftOut] = []
    for part, _ in source.documents(left_out):
        seen[part] += 1
        if all(seen.values()):
            return
    if not (total := sum(seen.values())):
        also = f": {corpus.describe(left_out)}" if left_out else ""
        raise ValueError(f"the corpus holds no text{also}")
    empty = next(part for part, count in seen.items() if not count)
    share = {"validation": source.validation_share, "heldout": source.heldout_share}.get(empty, 1.0)
    advice = {
        "validation": "data.validation_share, or name an own set with data.validation_path",
        "heldout": "data.heldout_share, or set it to 0",
        "train": "the training part by smaller shares of the others",
    }[empty]
    raise ValueError(
        f"the corpus has {total} documents and none of them falls into the {empty} part"
        f" ({share:.3g} of them by a hash of their names); add text, or raise {advice}"
    )


def _sample(source: corpus.Corpus) -> Iterator[str]:
    taken = 0
    for part, document in source.documents():
        if taken >= _TOKENIZER_CHARS:
            return
        if part == "train":
            taken += len(document.text)
            yield from without_long_runs(document.text)


def without_long_runs(text: str) -> Iterator[str]:
    """The text in parts: cut after every 256 characters of a run with, or of one without, blanks."""
    if max(map(len, text.split()), default=0) < 256 and not _LONG_BLANK.search(text):  # nearly always
        yield text
        return
    start = 0
    for found in _LONG_RUN.finditer(text):
        yield text[start : found.end()]
        start = found.end()
    if start < len(text):
        yield text[start:]


type _PartDocument = tuple[corpus.Part, corpus.Document]


def _grouped(documents: Iterable[_PartDocument]) -> Iterator[list[_PartDocument]]:
    group: list[_PartDocument] = []
    size = 0
    for part, document in documents:
        group.append((part, document))
        size += len(document.text)
        if size >= _SHARD_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shard(folder: Path, documents: list[_PartDocument], encoder: Tokenizer, separator: int) -> Path:
    """Encodes one group of documents into an .npz named by its content, unless it exists."""
    folder.mkdir(exist_ok=True)
    content = hashlib.sha256(f"{separator} {encoder.to_str()}".encode())
    for part, document in documents:
        content.update(f"{part}\0{document.name}\0{document.text}\0".encode())
    path = folder / f"{content.hexdigest()[:32]}.npz"
    if path.exists():
        return path
    texts = [text for _, document in documents for text, _ in document.pieces]
    encoded = iter(encoder.encode_batch_fast(texts, add_special_tokens=False))
    arrays: dict[str, list[np.ndarray]] = {f"{p}{kind}": [] for p in corpus.PARTS for kind in ("", _MASK)}
    names, sizes = [], dict.fromkeys(corpus.PARTS, (0, 0))
    for part, document in documents:
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


def _join(
    folder: Path, shards: list[Path], encoder: Tokenizer, separator: int, left_out: list[LeftOut]
) -> TokenizedCorpus:
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
    if all_in_loss:
        for part in ("train", "validation"):
            outputs[f"{part}.learn.bin"].unlink()
    manifest = {
        "dtype": dtype.str,
        "vocab_size": encoder.get_vocab_size(),
        "separator": separator,
        "learn": not all_in_loss,
        "parts": parts,
        "left_out": {"files": len(left_out), "named": [list(one) for one in left_out[:_NAMED_LEFT_OUT]]},
    }
    files.write_json(folder / "manifest.json", manifest)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return open_folder(folder)


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    size = path.stat().st_size if path.exists() else 0
    if size != length * dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes, its manifest says {length * dtype.itemsize}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
