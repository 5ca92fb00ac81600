"""Documents of a corpus, and the part of the split that each belongs to."""

import collections
import json

import pytest

from train import corpus


def write(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_txt", ".txt").replace("_jsonl", ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_standard_library_is_a_corpus_without_tests_and_vendored_code():
    names = [name for name, _ in corpus.list_files("")]
    assert len(names) > 300
    assert "enum.py" in names
    assert names == sorted(names)
    assert not [n for n in names if "site-packages" in n or n.startswith(("test/", "encodings/"))]


def test_a_document_stays_in_its_part_when_others_are_added_or_removed(tmp_path):
    write(tmp_path, **{f"f{i}_txt": "x" for i in range(40)})
    before = {d.name: corpus.part(d.name) for d in corpus.documents(str(tmp_path))}
    (tmp_path / "f7.txt").unlink()
    write(tmp_path, a__new_txt="y")
    after = {d.name: corpus.part(d.name) for d in corpus.documents(str(tmp_path))}
    assert {n: p for n, p in before.items() if n != "f7.txt#0"} == {
        n: p for n, p in after.items() if n != "a/new.txt#0"
    }


def test_one_document_in_twenty_validates_and_one_in_twenty_is_held_out():
    share = collections.Counter(corpus.part(f"folder/file{i}.py") for i in range(20000))
    assert share["validation"] == pytest.approx(1000, rel=0.1)
    assert share["heldout"] == pytest.approx(1000, rel=0.1)


def test_a_corpus_of_few_files_is_cut_at_line_ends_without_losing_a_character(tmp_path):
    text = "".join(f"line {i}\n" for i in range(9000))
    write(tmp_path, book_txt=text)
    for path in (str(tmp_path), str(tmp_path / "book.txt"), str(tmp_path / "*.txt")):
        pieces = list(corpus.documents(path))
        assert "".join(d.text for d in pieces) == text
        assert [d.name for d in pieces] == [f"book.txt#{i}" for i in range(len(pieces))]
        assert all(d.text.endswith("\n") and len(d.text) < 17000 for d in pieces)


def test_a_glob_names_files_from_their_common_folder(tmp_path):
    write(tmp_path, a__one_txt="1", b__two_txt="2", c__three_jsonl="")
    assert [name for name, _ in corpus.list_files(str(tmp_path / "**/*.txt"))] == ["a/one.txt", "b/two.txt"]


def test_files_that_are_not_utf8_are_skipped(tmp_path):
    write(tmp_path, good_txt="good\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    assert [d.text for d in corpus.documents(str(tmp_path))] == ["good\n"]


def test_of_a_prompt_and_its_answer_only_the_answer_is_in_the_loss(tmp_path):
    lines = [{"text": "abc"}, {"prompt": "2+2=", "answer": "4"}]
    write(tmp_path, q_jsonl="\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = corpus.documents(str(tmp_path))
    assert first.pieces == (("abc", True),)
    assert second.pieces == (("2+2=", False), ("4", True))


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt": "a"}', '{"other": 1}'])
def test_a_malformed_record_is_named_by_its_line(tmp_path, line):
    write(tmp_path, q_jsonl='{"text": "a"}\n' + line)
    with pytest.raises(ValueError, match=r"q\.jsonl line 2 is not"):
        list(corpus.documents(str(tmp_path)))


def test_a_byte_limit_samples_files_by_hash_not_by_name():
    limited = [d.name for d in corpus.documents("", limit_bytes=500_000)]
    assert 5 < len(limited) < 200
    assert limited != sorted(limited)
    assert limited == [d.name for d in corpus.documents("", limit_bytes=500_000)]


def test_a_missing_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        corpus.list_files(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no text file"):
        corpus.list_files(str(tmp_path))
