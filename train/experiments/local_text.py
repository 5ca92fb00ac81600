"""English prose and code that come with every Python: rows of tokens for uptraining and for measuring it.

Prose: the language reference that `help()` shows (`pydoc_data.topics`), and the docstrings of the standard
library. Code: the sources of the standard library. A file's docstrings and its source are in the same part of
the split, so that no held-out text was trained on.
"""

import ast
import hashlib
import itertools
import warnings
from collections.abc import Iterator
from pydoc_data import topics

import numpy as np
import tokenizers

from train import corpus
from train.corpus import Part

SOURCE = "Python's standard library: language reference and docstrings (prose), sources (code)"
KINDS = ("prose", "code")


def rows(
    tokenizer: tokenizers.Tokenizer, part: Part, count: int, length: int, *, kinds: tuple[str, ...] = KINDS
) -> np.ndarray:
    """tokens_BT, int32 [count, length]: an equal share of each kind, the kinds taking turns.

    A row is a stretch of one document; what is left at a document's end is not used.

    Raises:
      ValueError: this Python's library has fewer rows of that length.
    """
    sources = [_rows_of(tokenizer, part, kind, length) for kind in kinds]
    turns = (row for turn in zip(*sources) for row in turn)
    found = list(itertools.islice(turns, count))
    if len(found) < count:
        raise ValueError(f"{count} rows of {length} tokens are asked for; the {part} part has {len(found)}")
    return np.asarray(found, np.int32)


def _rows_of(tokenizer: tokenizers.Tokenizer, part: Part, kind: str, length: int) -> Iterator[list[int]]:
    for text in texts(part, kind):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        for start in range(0, len(ids) - length + 1, length):
            yield ids[start : start + length]


def texts(part: Part, kind: str) -> Iterator[str]:
    """The documents of one kind in one part of the split, in the order of their names' hashes."""
    library = ((document.key, document.text) for document in corpus.documents(""))
    if kind == "code":
        named = sorted(library, key=_order)
    else:
        reference = ((f"reference/{name}", text) for name, text in topics.topics.items())
        named = sorted((*reference, *((key, docstrings(text)) for key, text in library)), key=_order)
    yield from (text for key, text in named if text and corpus.part(key) == part)


def _order(named: tuple[str, str]) -> bytes:
    return hashlib.sha256(named[0].encode()).digest()[4:]


def docstrings(source: str) -> str:
    """The docstrings of a module, its classes and functions of a paragraph or more; "" if unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings of old sources
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, holders))
    return "\n\n".join(text for text in found if text and len(text) >= 120)
