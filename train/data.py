"""From token arrays to batches: windows of the stream, shuffled anew each epoch, the same in every run.

Batch number n is a function of (seed, n): a run that goes on from a checkpoint sees what it would have seen.
The stream is one row of documents with a separator before each, so a window is packed by itself.

    python -m train.data tokenize --input='books/**/*.txt' --out=runs/books --vocab_size=8192

writes such arrays once, on all cores; killed and called again it goes on where it was. Train from them with
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

_EPOCHS = 1 << 32  # without end for us; grain's own "without end" overflows when batches hold one row


@dataclass
class Data:
    """Where text comes from.

    Attributes:
      path: "" = the standard library's own source files; a folder, file or glob of text; or a folder that
        `python -m train.data tokenize` wrote.
      limit_bytes: read no more text than that (0 = all).
      document_mask: whether attention stays inside a document where a window holds several.
    """

    path: str = ""
    limit_bytes: int = 0
    document_mask: bool = False

    def check(self) -> None:
        if self.limit_bytes < 0:
            raise ValueError(f"data.limit_bytes is {self.limit_bytes}; 0 reads everything")


# `tokens_BT` and `target_BT` int32: what is read, and what is to be said there (in text: the next token).
# `learn_BT` float32 weighs the targets. `segment_BT` int32 numbers the documents that share a row.
type Batch = dict[str, np.ndarray]


def prepare(
    data: Data,
    folder: Path,
    vocab_size: int,
    report: Callable[[str], None] = lambda words: None,
    *,
    tokenizer: Path | None = None,
) -> tokens.TokenizedCorpus:
    """Opens the tokens of a run, writing them into `folder` first if they are not there.

    Args:
      vocab_size: of the model; a tokenizer trained here gets as many entries.
      tokenizer: a tokenizer.json to use instead of training one.

    Raises:
      ValueError: no corpus, an empty one, or one tokenized with more ids than the model has.
    """
    given = Path(data.path) if data.path else None
    if given and tokens.is_whole(given):
        opened = tokens.open_folder(given)
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
    """Cuts the stream into windows of T + 1 tokens; the grid starts elsewhere in every epoch."""

    def __init__(
        self, stream: np.ndarray, learn: np.ndarray | None, *, seq_len: int, seed: int, mask: bool = False
    ):
        if len(stream) < seq_len + 1:
            raise ValueError(
                f"a window takes {seq_len + 1} tokens, this part of the corpus has {len(stream)}"
            )
        self.stream, self.learn, self.seq_len, self.seed, self.mask = stream, learn, seq_len, seed, mask
        self.count = max(1, (len(stream) - seq_len) // seq_len)

    def offset(self, epoch: int) -> int:
        slack = len(self.stream) - 1 - self.count * self.seq_len
        return int(np.random.default_rng((self.seed, epoch)).integers(slack + 1)) if epoch >= 0 else 0

    def cut(self, window: int, epoch: int) -> Batch:
        """Window `window` of epoch `epoch` (-1: the grid starts at 0), without the batch axis."""
        at = slice(start := self.offset(epoch) + window * self.seq_len, start + self.seq_len + 1)
        token = np.asarray(self.stream[at], dtype=np.int32)
        learn = np.ones(self.seq_len) if self.learn is None else self.learn[at][1:]
        segment = (token[:-1] == tokens.SEPARATOR_ID).cumsum() if self.mask else np.zeros(self.seq_len)
        return {
            "tokens_BT": token[:-1],
            "target_BT": token[1:],
            "learn_BT": np.asarray(learn, dtype=np.float32),
            "segment_BT": segment.astype(np.int32),
        }


def batches(
    windows: Windows, batch_size: int, *, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """An endless iterator over shuffled batches; `get_state` / `set_state` move it.

    Args:
      batch_size: rows of the whole batch; a process reads its `batch_size // processes` of them.
      process, processes: which one, of how many.

    Raises:
      ValueError: the rows do not split over the processes.
    """
    if batch_size % processes:
        raise ValueError(f"a batch of {batch_size} rows does not split over {processes} processes")
    order = grain.MapDataset.range(windows.count).shuffle(seed=windows.seed).repeat(_EPOCHS)
    rows = order.map_with_index(lambda i, window: windows.cut(window, i // windows.count))
    mine = rows[process::processes].batch(batch_size // processes)
    return iter(mine.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)))


def whole_pass(windows: Windows, batch_size: int) -> Iterator[Batch]:
    """Every token once, in order, in windows that do not overlap; the last batch is filled with weight 0."""
    count = (len(windows.stream) - 1) // windows.seq_len
    for start in range(0, count, batch_size):
        rows = [windows.cut(min(i, count - 1), -1) for i in range(start, start + batch_size)]
        for extra in rows[count - start :]:
            extra["learn_BT"] = np.zeros_like(extra["learn_BT"])
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _tokenize() -> None:
    path, out = flags.FLAGS.input, Path(flags.FLAGS.out)
    given = Path(flags.FLAGS.tokenizer) if flags.FLAGS.tokenizer else None
    asked = {"input": path, "vocab_size": flags.FLAGS.vocab_size, "tokenizer": str(given or "")}
    out.mkdir(parents=True, exist_ok=True)
    if (out / "asked.json").exists() and (before := files.read_json(out / "asked.json")) != asked:
        raise ValueError(f"{out} was started for {before}, now asked for {asked}; name another --out")
    files.write_json(out / "asked.json", asked)
    done = (
        tokens.open_folder(out)
        if tokens.is_whole(out)
        else tokens.write(path, out, vocab_size=flags.FLAGS.vocab_size, tokenizer=given, report=print)
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
