"""From token arrays to batches: windows of the token stream, shuffled per epoch, deterministic.

Batch n is a function of (seed, n), so a resumed run sees the batches it would have seen. The stream is a
sequence of documents with a separator before each, so windows are packed.

    python -m train.data tokenize --input='books/**/*.txt' --out=runs/books --vocab_size=8192

writes token arrays on all cores. It resumes when it is interrupted and started again. Train from them with
`--config.data.path=runs/books`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from absl import flags

from mixattn.tools import cli
from train import token_files, tokens
from train.corpus import Corpus

_EPOCHS = 1 << 32  # endless in practice; grain's own endless repeat overflows when batches hold one row


@dataclass
class DataConfig:
    """The corpus.

    Attributes:
      path: "" = the sources of Python's standard library; a folder, file or glob of text (.txt, .md, code,
        .jsonl, .parquet, also as .gz and .zst); a .bin file of token ids; or a folder that
        `python -m train.data tokenize` wrote.
      limit_bytes: maximum size of the text that is read (0 = all).
      document_mask: whether attention stays inside a document when a window holds several.
      text_field: field of .jsonl records, or column of .parquet files, that holds the text.
      split_by: "piece" cuts text files into documents of about 16 thousand characters before they are split
        into parts; "file" keeps each file in one part.
      validation_path: an own validation set, like `path` ("" = a share of `path`).
      validation_share: share of the documents that validate.
      heldout_share: share of the documents that are kept as prompts in heldout.jsonl (0 = none).
      tokenizer: a tokenizer.json or a folder with one, to use instead of training one ("" = train one).
      separator: text of the tokenizer's token that goes before every document ("" = the one that it ends
        texts with; a tokenizer trained here has its own).
      token_dtype: numbers in a .bin file: "uint16" or "uint32", little-endian.
    """

    path: str = ""
    limit_bytes: int = 0
    document_mask: bool = False
    text_field: str = "text"
    split_by: str = "piece"
    validation_path: str = ""
    validation_share: float = 0.05
    heldout_share: float = 0.05
    tokenizer: str = ""
    separator: str = ""
    token_dtype: str = "uint16"

    def check(self) -> None:
        if self.limit_bytes < 0:
            raise ValueError(f"data.limit_bytes is {self.limit_bytes}; 0 reads everything")
        if self.split_by not in ("piece", "file"):
            raise ValueError(f"data.split_by is {self.split_by!r}; it must be 'piece' or 'file'")
        if self.token_dtype not in token_files.DTYPES:
            raise ValueError(f"data.token_dtype is {self.token_dtype!r}; it must be 'uint16' or 'uint32'")
        shares = self.validation_share, self.heldout_share
        if not (min(shares) >= 0 and sum(shares) < 1):  # nan too
            raise ValueError(
                f"data.validation_share is {shares[0]} and data.heldout_share {shares[1]}; both must be at"
                " least 0 and their sum below 1"
            )
        if not self.validation_path and not self.validation_share:
            raise ValueError("data.validation_share is 0 and data.validation_path empty: nothing validates")

    def corpus(self) -> Corpus:
        """The text to read, and how to split it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Corpus)}
        return Corpus(**fields)


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
    replace: bool = False,
) -> tokens.TokenizedCorpus:
    """Opens the tokens of a run; writes them into `folder` first if they are missing.

    Args:
      vocab_size: of the model, and of a tokenizer trained here.
      report: called with progress messages.
      tokenizer: a tokenizer.json to use instead of training one, before `data.tokenizer`.
      replace: write anew what another request has written into `folder`; otherwise it is refused.

    Raises:
      ValueError: the corpus is missing, is empty, or is tokenized with more ids than the model has.
    """
    if tokenizer is None and data.tokenizer:
        tokenizer = Path(data.tokenizer)
        tokenizer = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
        if not tokenizer.is_file():
            raise ValueError(f"data.tokenizer: there is no file {tokenizer}")
    tokenized = Path(data.path) if data.path else None
    if tokenized and tokens.is_whole(tokenized):
        opened = tokens.open_folder(tokenized)
    elif tokens.is_written(folder, _request(data, vocab_size, tokenizer), replace=replace):
        opened = tokens.open_folder(folder)
    elif token_files.is_token_file(data.path):
        opened = token_files.write(
            data.corpus(),
            folder,
            dtype=data.token_dtype,
            tokenizer=tokenizer,
            separator=data.separator,
            report=report,
        )
    else:
        opened = tokens.write(
            data.corpus(),
            folder,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            separator=data.separator,
            report=report,
        )
    if opened.manifest["vocab_size"] > vocab_size:
        raise ValueError(
            f"{opened.folder} uses {opened.manifest['vocab_size']} token ids,"
            f" model.vocab_size is {vocab_size}"
        )
    return opened


def _request(data: DataConfig, vocab_size: int, tokenizer: Path | None) -> dict[str, object]:
    if token_files.is_token_file(data.path):
        return token_files.request(data.corpus(), data.token_dtype, tokenizer)
    return tokens.request(data.corpus(), vocab_size, tokenizer, data.separator)


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
    given = flags.FLAGS
    out = Path(given.out)
    names = ("text_field", "split_by", "validation_path", "validation_share", "heldout_share", "token_dtype")
    options = {name: given[name].value for name in names}
    data = DataConfig(path=given.input, tokenizer=given.tokenizer, **options)
    data.check()
    done = prepare(data, out, given.vocab_size, print)
    for part, counts in done.manifest["parts"].items():
        print(f"{part}: {counts['documents']} documents, {counts['bytes']} bytes, {counts['tokens']} tokens")


def _flags() -> None:
    default = DataConfig()
    flags.DEFINE_string(
        "input",
        "",
        "Folder, file or glob of text (.txt, .md, code, .jsonl, .parquet; also .gz, .zst), or a .bin"
        " file of token ids; empty: the standard library.",
    )
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("vocab_size", 2048, "Entries of the tokenizer to train.", lower_bound=1)
    flags.DEFINE_string(
        "tokenizer", "", "A tokenizer.json, or a folder with one, to use instead of training one."
    )
    flags.DEFINE_string(
        "text_field", default.text_field, "Field of .jsonl, or column of .parquet, with the text."
    )
    flags.DEFINE_enum(
        "split_by", default.split_by, ["piece", "file"], "Split pieces of files into parts, or whole files."
    )
    flags.DEFINE_string("validation_path", "", "An own validation set, like --input.")
    flags.DEFINE_float("validation_share", default.validation_share, "Share of the documents that validate.")
    flags.DEFINE_float("heldout_share", default.heldout_share, "Share of the documents kept as prompts.")
    flags.DEFINE_enum("token_dtype", default.token_dtype, list(token_files.DTYPES), "Numbers in a .bin file.")


if __name__ == "__main__":
    import sys

    _flags()
    if sys.argv[1:2] == ["tokenize"]:
        cli.run(_tokenize, argv=[sys.argv[0], *sys.argv[2:]])
    if {"-h", "--help"} & set(sys.argv[1:]):
        cli.run(_tokenize, argv=[sys.argv[0], "--help"])
    print("error: the command is `python -m train.data tokenize --input=... --out=...`", file=sys.stderr)
    sys.exit(2)
