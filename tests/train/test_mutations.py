"""Randomly damaged input of training loads right or is refused in a sentence, without a silent change."""

import json
import random
from pathlib import Path

import pytest

from mixattn.tools import cli
from tests.train import tiny
from tests.train.test_checkpoint import equal, restore, state
from train import corpus, text_files
from train.checkpoint import Checkpoints
from train.recipe import recipe
from train.resume import ChangedPast, allowed_changes

FEW, MANY = 50, 500  # of each of four kinds: 200 in `make test`, 2,000 in the long run
COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.long)]
REFUSALS = (ValueError, OSError)  # what `cli.run` turns into one sentence


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """One random mutation: a flipped bit, bytes removed, inserted, doubled or replaced, or a cut."""
    at, size = rng.randrange(len(whole) + 1), rng.randint(1, 8)
    match rng.randrange(6):
        case 0 if at < len(whole):
            return whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        case 1:
            return whole[:at] + whole[at + size :]
        case 2:
            return whole[:at] + rng.randbytes(size) + whole[at:]
        case 3:
            return whole[:at] + whole[at : at + size] + whole[at:]
        case 4:
            return (
                whole[:at] + rng.choice([b"null", b'"', b"{", b"NaN", b"\\ud800", b"\0", b"\n"]) + whole[at:]
            )
    return whole[:at]


def is_sentence(why: Exception) -> bool:
    return 5 < len(str(why)) < 1000 and "Traceback" not in str(why)


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_jsonl_gives_the_text_that_json_says_or_names_the_line(tmp_path, count):
    rng, path = random.Random(1), tmp_path / "q.jsonl"
    whole = b'{"text": "one \\u00e9"}\n{"prompt": "2+2=", "answer": "4"}\n{"text": "three \xe2\x80\xa8 x"}\n'
    refused = 0
    for _ in range(count):
        path.write_bytes(content := damaged(rng, whole))
        try:
            got = [d.text for d in corpus.documents(str(path))]
        except REFUSALS as why:
            said = why
        else:
            said = None
        if said:
            assert "q.jsonl line " in str(said)
            assert is_sentence(said)
            refused += 1
            continue
        records = [json.loads(line) for line in content.split(b"\n") if line.strip()]
        want = [r["text"] if "text" in r else r["prompt"] + r["answer"] for r in records]
        assert got == want
    assert 0 < refused < count


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_corpus_file_is_read_as_it_is_or_named_with_the_reason(tmp_path, count):
    import gzip

    rng = random.Random(2)
    text = "Zeile eins: é\nline two\r\nthree\n".encode()
    for number in range(count):
        packed = bool(number % 2)
        content = damaged(rng, gzip.compress(text, mtime=0) if packed else text)
        path = tmp_path / f"f{number}.txt{'.gz' * packed}"
        path.write_bytes(content)
        left_out: list[text_files.LeftOut] = []
        got = "".join(d.text for d in corpus.documents(str(path), left_out=left_out))
        path.unlink()
        if left_out:
            assert not got
            assert left_out[0].name == path.name
            assert left_out[0].reason
            continue
        try:
            plain = gzip.decompress(content) if packed else content
        except EOFError:  # cut inside the header of a further member: what came before is whole
            plain = text
        assert got == plain.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_checkpoint_is_refused_and_an_undamaged_one_is_not(tmp_path, count):
    opened = Checkpoints(tmp_path / "c")
    opened.save(1, state(1), {"seconds": 1.0}, validation=2.0)
    opened.wait()
    folder = tmp_path / "c" / "1"
    names = sorted(p for p in folder.rglob("*") if p.is_file())
    rng = random.Random(3)
    for number in range(count):
        file: Path = names[number % len(names)]
        whole = file.read_bytes()
        changed = damaged(rng, whole)
        if changed == whole:
            continue
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="not as it was written") as why:
            opened.meta(1)
        assert is_sentence(why.value)
        file.write_bytes(whole)
    assert equal(restore(opened, 1), state(1))
    opened.close()


def leaves(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif isinstance(node, list):
        for key, value in enumerate(node):
            yield from leaves(value, (*path, key))
    else:
        yield path, node


VALUES = [0, -1, 1, 3, 0.5, 2.0**40, float("nan"), float("inf"), -0.0, "", "x", "\ud800", None, True, [], {}]


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_config_is_refused_or_is_a_change_that_a_resume_names(count):
    rng = random.Random(4)
    fields = list(leaves(recipe(tiny.get_config())))
    refused = 0
    for _ in range(count):
        config = tiny.get_config()
        path, _ = rng.choice(fields)
        node = config
        for key in path[:-1]:
            node = node[key] if isinstance(key, int) else getattr(node, key)
        before = recipe(config)
        setattr(node, path[-1], rng.choice(VALUES))
        try:
            cli.check_tree(config)
            now = recipe(config)
            changes = allowed_changes(before, now, [1])
        except (ChangedPast, *REFUSALS) as why:
            said = why
        else:
            said = None
        if said:
            assert is_sentence(said)
            refused += 1
            continue
        assert {c.name for c in changes} <= {".".join(map(str, path))}
    assert refused > count // 4
