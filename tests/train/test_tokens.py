"""Token folders: what was written is read back, incomplete folders are refused, interrupted writes resume."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from train import corpus, tokens


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(120):
        (folder / f"f{i:03}.txt").write_text(f"def f{i}(x):\n    return x + {i} * 'é'\n" * 4)
    return folder


@pytest.fixture(scope="module")
def written(texts, tmp_path_factory):
    return tokens.write(str(texts), tmp_path_factory.mktemp("tokens"), vocab_size=400)


def split(stream):
    """Returns the documents of a stream, without their separators."""
    starts = np.flatnonzero(stream == tokens.SEPARATOR_ID)
    assert starts[0] == 0
    return [part[1:].tolist() for part in np.split(stream, starts[1:])]


def test_every_document_of_a_part_is_in_its_stream_to_the_character(texts, written):
    documents = {
        p: [d for d in corpus.documents(str(texts)) if corpus.part(d.name) == p] for p in corpus.PARTS
    }
    for part, stream in (("train", written.train), ("validation", written.validation)):
        decoded = [written.tokenizer.decode(ids) for ids in split(stream)]
        assert decoded == [d.text for d in documents[part]]
        counts = written.manifest["parts"][part]
        assert counts["documents"] == len(documents[part])
        assert counts["bytes"] == sum(len(d.text.encode()) for d in documents[part])
    lines = (written.folder / "heldout.jsonl").read_text().splitlines()
    held = [json.loads(line) for line in lines]
    assert [h["path"] for h in held] == [d.name for d in documents["heldout"]]
    assert [written.tokenizer.decode(h["ids"]) for h in held] == [d.text for d in documents["heldout"]]


def test_writing_twice_gives_the_same_bytes(texts, written, tmp_path):
    again = tokens.write(str(texts), tmp_path, vocab_size=400)
    for name in ("train.bin", "validation.bin", "heldout.jsonl", "manifest.json", "tokenizer.json"):
        assert (again.folder / name).read_bytes() == (written.folder / name).read_bytes()


def test_an_interrupted_write_is_incomplete_and_resumes_at_its_shard(texts, written, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_SHARD_CHARS", 3000)
    calls, encode = [], tokens._shard

    def counted(folder, documents, encoder, separator):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(documents)
        return encode(folder, documents, encoder, separator)

    monkeypatch.setattr(tokens, "_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        tokens.write(str(texts), tmp_path, vocab_size=400)
    with pytest.raises(ValueError, match="not a token folder, or writing it was interrupted"):
        tokens.open_folder(tmp_path)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()}
    assert len(kept) == 4
    monkeypatch.setattr(tokens, "_shard", encode)
    monkeypatch.setattr(tokens.shutil, "rmtree", lambda *a, **k: None)
    done = tokens.write(str(texts), tmp_path, vocab_size=400)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "shards").iterdir()}
    assert len(after) > 4
    assert {name: after[name] for name in kept} == kept
    np.testing.assert_array_equal(done.train, written.train)


def test_a_file_of_another_length_than_the_manifest_says_is_refused(texts, tmp_path):
    done = tokens.write(str(texts), tmp_path, vocab_size=400)
    size = (tmp_path / "train.bin").stat().st_size
    with (tmp_path / "train.bin").open("r+b") as file:
        file.truncate(size - 2)
    with pytest.raises(ValueError, match=f"has {size - 2} bytes, its manifest says {size}"):
        tokens.open_folder(done.folder)


def test_prompts_are_kept_out_of_the_loss_mask(tmp_path):
    records = [{"prompt": f"{i} + 1 =", "answer": f" {i + 1}"} for i in range(300)]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = tokens.write(str(tmp_path / "qa.jsonl"), tmp_path / "out", vocab_size=300)
    assert done.train_loss_mask is not None
    text = done.tokenizer.decode(done.train[done.train_loss_mask.astype(bool)].tolist())
    assert "=" not in text
    assert "+" not in text
    wanted = [i + 1 for i in range(300) if corpus.part(f"qa.jsonl#{i}") == "train"]
    assert [int(number) for number in text.split()] == wanted


def test_a_corpus_too_small_for_every_part_is_refused(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one line\n")
    with pytest.raises(ValueError, match="the corpus has 1 documents and none of them falls into"):
        tokens.write(str(texts), tmp_path / "out", vocab_size=300)


def test_a_given_tokenizer_separates_documents_by_its_own_end_token(texts, tmp_path):
    """In GPT-2's, id 0 is an exclamation mark and the end of a text has the last id."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(
        models.BPE(
            vocab={"!": 0} | {c: i + 1 for i, c in enumerate(c for c in alphabet if c != "!")}, merges=[]
        )
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.enable_truncation(8)
    made.save(str(tmp_path / "tokenizer.json"))
    end = made.token_to_id("<|endoftext|>")
    assert end != 0
    written = tokens.write(
        str(texts), tmp_path / "out", vocab_size=400, tokenizer=tmp_path / "tokenizer.json"
    )
    assert written.separator == end
    for part, stream in (("train", written.train), ("validation", written.validation)):
        counts = written.manifest["parts"][part]
        assert int((np.asarray(stream) == end).sum()) == counts["documents"]
        # A byte is a token, so nothing was cut off.
        assert counts["tokens"] == counts["bytes"] + counts["documents"]
    other = tokens.write(
        str(texts), tmp_path / "other", vocab_size=400, tokenizer=tmp_path / "tokenizer.json", separator="!"
    )
    assert other.separator == 0


def test_a_tokenizer_without_an_end_token_is_refused(texts, tmp_path):
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="names no token that ends a text"):
        tokens.write(str(texts), tmp_path / "out", vocab_size=400, tokenizer=tmp_path / "tokenizer.json")
