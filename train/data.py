"""From token arrays to batches: windows of the token stream, shuffled per epoch, deterministic.

Batch n is a function of (seed, n), so a resumed run sees the batches it would have seen. The stream is a
sequence of documents with a separator before each, so windows are packed.

    python -m train.data tokenize --input='books/**/*.txt' --out=runs/books --vocab_size=8192

writes token arrays on all cores. It resumes when it is interrupted and started again. Train from them with
`--config.data.path=runs/books`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from absl import flags

from mixattn.tools import cli, files
from train import tokens

_EPOCHS = 1 << 32  # endless in practice; grain's own endless repeat overflows when batches hold one row


@dataclass
class DataConfig:
    """The corpus.

    Attributes:
      path: "" = the sources of Python's standard library; a folder, file or glob of text; or a folder that
        `python -m train.data tokenize` wrote.
      limit_bytes: maximum size of the text that is read (0 = all).
      document_mask: whether attention stays inside a document when a window holds several.
    """

    path: str = ""
    limit_bytes: int = 0
    document_mask: bool = False

    def check(self) -> None:
        if self.limit_bytes < 0:
            raise ValueError(f"data.limit_bytes is {self.limit_bytes}; 0 reads everything")


# tokens_BT int32: inputs. target_BT int32: what to predict there (for text, the next token). loss_mask_BT
# float32: weights of the targets. segment_BT int32: index of the document within its row.
type Batch = dict[str, np.ndarray]


def prepare(
    data: DataConfig,
    folder: Path,
    vocab_size: int,
    report: Callable[[str], None] = lambda line: None,
    *,
    tokenizer: Path | None = None,
) -> tokens.TokenizedCorpus:
    """Opens the tokens of a run; writes them into `folder` first if they are missing.

    Args:
      vocab_size: of the model, and of a tokenizer trained here.
      report: called with progress messages.
      tokenizer: a tokenizer.json to use instead of training one.

    Raises:
      ValueError: the corpus is missing, is empty, or is tokenized with more ids than the model has.
    """
    tokenized = Path(data.path) if data.path else None
    if tokenized and tokens.is_whole(tokenized):
        opened = tokens.open_folder(tokenized)
    elif tokens.is_whole(folder):
        opened = tokens.open_folder(folder)
    else:
        opened = tokens.write(
            data.path,
            folder,
            vocab_size=vocab_size,
            limit_bytes=data.limit_bytes,
            tokenizer=tokenizer,
            report=report,
        )
    if opened.manifest["vocab_size"] > vocab_size:
        raise ValueError(
            f"{opened.folder} uses {opened.manifest['vocab_size']} token ids,"
            f" model.vocab_size is {vocab_size}"
        )
    return opened


class Windows:
    """Cuts the stream into windows of T + 1 tokens, from another offset in every epoch.

    Args:
      stream: token ids.
      loss_mask: weights of the tokens as targets; None = 1.
      seq_len: T.
      document_mask: whether `segment_BT` numbers the documents of a window; else it is 0.
      separator: the id that begins a document.

    Raises:
      ValueError: the stream is shorter than one window.
    """

    def __init__(
        self,
        stream: np.ndarray,
        loss_mask: np.ndarray | None,
        *,
        seq_len: int,
        seed: int,
        document_mask: bool = False,
        separator: int = tokens.SEPARATOR_ID,
    ):
        if len(stream) < seq_len + 1:
            raise ValueError(
                f"a window takes {seq_len + 1} tokens, this part of the corpus has {len(stream)}"
            )
        self.stream, self.loss_mask, self.seq_len, self.seed = stream, loss_mask, seq_len, seed
        self.document_mask, self.separator = document_mask, separator
        self.count = max(1, (len(stream) - seq_len) // seq_len)

    def offset(self, epoch: int) -> int:
        """First token of window 0 in `epoch`; 0 for epoch -1."""
        slack = len(self.stream) - 1 - self.count * self.seq_len
        return int(np.random.default_rng((self.seed, epoch)).integers(slack + 1)) if epoch >= 0 else 0

    def cut(self, window: int, epoch: int) -> Batch:
        """Returns window `window` of epoch `epoch`, without the batch axis."""
        at = slice(start := self.offset(epoch) + window * self.seq_len, start + self.seq_len + 1)
        token = np.asarray(self.stream[at], dtype=np.int32)
        loss_mask = np.ones(self.seq_len) if self.loss_mask is None else self.loss_mask[at][1:]
        segment = (token[:-1] == self.separator).cumsum() if self.document_mask else np.zeros(self.seq_len)
        return {
            "tokens_BT": token[:-1],
            "target_BT": token[1:],
            "loss_mask_BT": np.asarray(loss_mask, dtype=np.float32),
            "segment_BT": segment.astype(np.int32),
        }


def batches(
    windows: Windows, batch_size: int, *, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """Returns an endless iterator over shuffled batches; `get_state` and `set_state` move it.

    Args:
      batch_size: rows of the global batch; each process reads `batch_size // processes` of them.
      process, processes: index of this process, and their number.

    Raises:
      ValueError: the rows do not divide over the processes.
    """
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} rows does not split over {processes} processes")
    order = grain.MapDataset.range(windows.count).shuffle(seed=windows.seed).repeat(_EPOCHS)
    rows = order.map_with_index(lambda i, window: windows.cut(window, i // windows.count))
    local = rows[process::processes].batch(batch_size // processes)
    return iter(local.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def sequential_batches(windows: Windows, batch_size: int) -> Iterator[Batch]:
    """Yields every target once, in order, in batches; the last batch is padded with rows of loss mask 0."""
    count = (len(windows.stream) - 1) // windows.seq_len
    for start in range(0, count, batch_size):
        rows = [windows.cut(min(i, count - 1), -1) for i in range(start, start + batch_size)]
        for padding in rows[count - start :]:
            padding["loss_mask_BT"] = np.zeros_like(padding["loss_mask_BT"])
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _tokenize() -> None:
    path, out, vocab_size = flags.FLAGS.input, Path(flags.FLAGS.out), flags.FLAGS.vocab_size
    tokenizer = Path(flags.FLAGS.tokenizer) if flags.FLAGS.tokenizer else None
    request = {"input": path, "vocab_size": vocab_size, "tokenizer": str(tokenizer or "")}
    record = out / "asked.json"
    out.mkdir(parents=True, exist_ok=True)
    if record.exists() and (before := files.read_json(record)) != request:
        raise ValueError(f"{out} was started for {before}, now asked for {request}; name another --out")
    files.write_json(record, request)
    done = (
        tokens.open_folder(out)
        if tokens.is_whole(out)
        else tokens.write(path, out, vocab_size=vocab_size, tokenizer=tokenizer, report=print)
    )
    for part, counts in done.manifest["parts"].items():
        print(f"{part}: {counts['documents']} documents, {counts['bytes']} bytes, {counts['tokens']} tokens")


if __name__ == "__main__":
    import sys

    flags.DEFINE_string("input", "", "Folder, file or glob of text or .jsonl; empty: the standard library.")
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("vocab_size", 2048, "Entries of the tokenizer to train.")
    flags.DEFINE_string("tokenizer", "", "A tokenizer.json to use instead of training one.")
    if sys.argv[1:2] == ["tokenize"]:
        cli.run(_tokenize, argv=[sys.argv[0], *sys.argv[2:]])
    print("error: the command is `python -m train.data tokenize --input=... --out=...`", file=sys.stderr)
    sys.exit(2)
