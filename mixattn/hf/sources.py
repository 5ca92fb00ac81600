"""Where a model comes from: a directory in the Hugging Face layout, or a GGUF file. Both answer alike."""

import functools
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from mixattn.hf import checkpoint_dir, companions, gguf_config, gguf_tokenizer, native, tokenizer_file
from mixattn.hf.gguf_file import GGUFFile
from mixattn.hf.gguf_tensors import GGUFTensors
from mixattn.hf.json_file import read_object
from mixattn.hf.tensors import TensorSource

GGUF_MAGIC = b"GGUF"


class CheckpointSource(Protocol):
    """A checkpoint's parts, each read when it is asked for."""

    def config(self) -> dict[str, Any]:
        """Contents of config.json."""

    def generation(self) -> dict[str, Any]:
        """Contents of generation_config.json, possibly none."""

    def tokenizer_settings(self) -> dict[str, Any]:
        """Contents of tokenizer_config.json, possibly none."""

    def templates(self) -> dict[str, str]:
        """Chat templates by name, possibly none."""

    def has_tokenizer(self) -> bool:
        """Whether `tokenizer` can be read."""

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer."""

    def tensors(self) -> TensorSource:
        """The weights."""


class DirectorySource:
    """A directory in the Hugging Face layout."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def config(self) -> dict[str, Any]:
        return read_object(self._directory / checkpoint_dir.CONFIG)

    def generation(self) -> dict[str, Any]:
        return companions.read_generation(self._directory)

    def tokenizer_settings(self) -> dict[str, Any]:
        return companions.read_settings(self._directory)

    def templates(self) -> dict[str, str]:
        return companions.read_templates(self._directory, self.tokenizer_settings())

    def has_tokenizer(self) -> bool:
        return (self._directory / checkpoint_dir.TOKENIZER).exists()

    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizer_file.read_tokenizer(
            self._directory / checkpoint_dir.TOKENIZER, self.tokenizer_settings()
        )

    def tensors(self) -> TensorSource:
        return checkpoint_dir.Tensors(self._directory, codes=native.has_codes(self.config()))


class GGUFSource:
    """A GGUF file."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)

    @property
    def is_vocabulary(self) -> bool:
        """Whether the file has a tokenizer and no weights."""
        return not self._file.infos

    def config(self) -> dict[str, Any]:
        return gguf_config.read_config(self._file)

    def generation(self) -> dict[str, Any]:
        return gguf_tokenizer.generation_config(self._file)

    def tokenizer_settings(self) -> dict[str, Any]:
        return gguf_tokenizer.tokenizer_config(self._file)

    def templates(self) -> dict[str, str]:
        return companions.named_templates(self.tokenizer_settings().get("chat_template"), self._file.path)

    def has_tokenizer(self) -> bool:
        return self._file.metadata.get("tokenizer.ggml.model", "no_vocab") not in ("no_vocab", "none")

    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizer_file.plain(gguf_tokenizer.read_tokenizer(self._file), {})

    def tensors(self) -> TensorSource:
        return GGUFTensors(self._file, self.config())


def open_source(path: str | Path) -> CheckpointSource:
    """The checkpoint at `path`.

    Raises:
      ValueError: a file that is not GGUF; a GGUF file that is not whole.
    """
    path = Path(path)
    if not path.is_file():
        return DirectorySource(path)
    with path.open("rb") as file:
        if file.read(4) != GGUF_MAGIC:
            raise ValueError(f"{path} is a file but not GGUF; name a GGUF file or a checkpoint directory")
    stat = path.stat()
    return _gguf(path.resolve(), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _gguf(path: Path, mtime_ns: int, size: int) -> GGUFSource:
    """The parsed file; parsing takes seconds, so the last one is kept while it does not change."""
    return GGUFSource(path)
