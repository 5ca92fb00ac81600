"""Rows of prose and code: the kinds take turns, and no held-out file is trained on."""

import pytest

from train import corpus
from train.experiments import local_text

MODULE = (
    '"""' + "A module that says at some length what it is for. " * 4 + '"""\n\ndef f():\n    """Short."""\n'
)


class ByteTokenizer:
    """Ids are bytes, as the `tokenizers` interface returns them."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return type("Encoding", (), {"ids": list(text.encode())})


@pytest.fixture
def library(monkeypatch):
    """Forty small modules in place of the standard library, and ten topics of the reference."""
    found = [corpus.Document(f"m{i}.py", ((f"# {i}\n{MODULE}", True),), f"m{i}.py") for i in range(40)]
    monkeypatch.setattr(corpus, "documents", lambda path: iter(found))
    monkeypatch.setattr(local_text.topics, "topics", {f"t{i}": f"Topic {i}. " * 40 for i in range(10)})


def test_docstrings_of_a_paragraph_are_prose_and_broken_sources_have_none():
    assert local_text.docstrings(MODULE).startswith("A module that says")
    assert "Short." not in local_text.docstrings(MODULE)
    assert local_text.docstrings("def f(:\n") == ""


def test_kinds_take_turns_and_a_row_is_a_stretch_of_one_document(library):
    rows = local_text.rows(ByteTokenizer(), "train", 10, 32)
    assert rows.shape == (10, 32)
    assert rows.dtype == "int32"
    joined = {kind: list(local_text.texts("train", kind)) for kind in local_text.KINDS}
    for i, row in enumerate(rows):
        assert any(bytes(row.tolist()).decode() in text for text in joined[local_text.KINDS[i % 2]])


def test_parts_share_no_document_and_a_files_docstrings_go_with_it(library):
    code = {part: set(local_text.texts(part, "code")) for part in ("train", "validation", "heldout")}
    assert sum(map(len, code.values())) == 40 == len(set.union(*code.values()))
    prose = [len(list(local_text.texts(part, "prose"))) for part in code]
    assert sum(prose) == 40 + 10


def test_too_many_rows_are_refused_with_both_numbers(library):
    with pytest.raises(ValueError, match=r"9999 rows of 32 tokens are asked for; the train part has \d+"):
        local_text.rows(ByteTokenizer(), "train", 9999, 32)
