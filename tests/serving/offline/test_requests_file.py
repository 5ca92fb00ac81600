"""The files of the offline command: whatever a line holds it is read or refused by number, and no answer is
lost or doubled."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from serving.offline.answers import Answers
from serving.offline.requests_file import read
from serving.request import Output, Request, Sampling


def infos(folder: Path, *lines: str) -> Path:
    path = folder / "asks.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="")
    return path


def read_lines(folder: Path, *lines: str) -> list[Request]:
    return read(infos(folder, *lines), lambda text: list(text.encode()))


def output(id: str, index: int = 0, text: str = "") -> Output:
    return Output(
        id=id, client="a", output_ids=[1], finish_reason="length", prompt_tok=1, hit_tok=0, arrival_s=0.0,
        admit_s=0.0, first_token_s=0.0, finish_s=0.0, index=index, text=text,
    )  # fmt: skip


def request(id: str, n: int = 1) -> Request:
    return Request(client="a", prompt_ids=[1], id=id, sampling=Sampling(n=n))


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"], ids=ascii)
def test_only_a_newline_ends_a_line(tmp_path, odd):
    """JSON lets most of these stand in a text as they are; Python's splitlines breaks at all of them."""
    line = json.dumps({"prompt": f"a{odd}b"}, ensure_ascii=odd < " ")
    [one] = read_lines(tmp_path, line)
    assert bytes(one.prompt_ids).decode() == f"a{odd}b"


def test_line_ends_of_other_systems_and_empty_lines_are_fine(tmp_path):
    path = tmp_path / "asks.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt_ids": [1]}\r\n\r\n{"prompt_ids": [2]}')
    assert [(r.id, r.prompt_ids) for r in read(path, None)] == [("1", (1,)), ("3", (2,))]


def test_null_means_as_if_it_were_not_there(tmp_path):
    fields = {
        "prompt": None,
        "stop": None,
        "seed": None,
        "cache_salt": None,
        "client": None,
        "max_tokens": None,
    }
    [one] = read_lines(tmp_path, json.dumps({"prompt_ids": [1], **fields}))
    assert one == Request(client="default", id="1", prompt_ids=[1])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"prompt_ids": [1], "logit_bias": [1, 2]}', "logit_bias must be an object"),
        ('{"prompt_ids": [1], "logit_bias": {"x": 1}}', "logit_bias"),
        ('{"prompt_ids": [1], "logit_bias": {"3": "y"}}', "logit_bias"),
        ('{"prompt_ids": [1], "stop": 3}', "stop must be a text or a list of texts"),
        ('{"prompt_ids": [1], "stop": [3]}', "sampling.stop is"),
        ('{"prompt_ids": [1], "stop_ids": 3}', "stop_ids must be a list"),
        ('{"prompt_ids": [1], "max_tokens": 4.5}', "sampling.max_tokens is 4.5"),
        ('{"prompt_ids": [1], "temperature": NaN}', "sampling.temperature is nan"),
        ('{"prompt_ids": [true]}', "prompt_ids must be a list of integers"),
        ('{"prompt_ids": [1], "client": ["a"]}', "client is"),
        ('{"prompt_ids": [1], "id": {}}', "id must be a text or a whole number"),
        ('{"prompt_ids": [1], "id": ""}', "id must be a text or a whole number"),
        ("[" * 100_000, "line 1: "),
        ("[1]", "is a list, not an object"),
    ],
)
def test_what_cannot_be_a_request_is_refused_by_line_number(tmp_path, line, why):
    with pytest.raises(ValueError, match=f"line 1: .*{why}|{why}"):
        read_lines(tmp_path, line)


def test_an_id_that_another_requests_outputs_are_scheduled_under_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="asks for id 'x#1' twice"):
        read_lines(tmp_path, '{"prompt_ids": [1], "id": "x", "n": 2}', '{"prompt_ids": [1], "id": "x#1"}')


def test_bytes_that_are_no_text_are_named_with_their_file(tmp_path):
    path = tmp_path / "asks.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match=r"asks\.jsonl is not UTF-8"):
        read(path, None)


def test_answers_with_any_character_are_one_line_each_and_found_again(tmp_path):
    path = tmp_path / "out"
    answers = Answers(path, [request("é\u2028")])
    answers.write(output("é\u2028", text="a\u2028b\x85c"))
    answers.close()
    again = Answers(path, [request("é\u2028")])
    again.close()
    assert again.missing == []


@pytest.mark.parametrize("torn", ["{", '{"id": "a', '{"id": "a", "client": "a", "output_ids": [1, '])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    answers = Answers(tmp_path / "out", [request("a"), request("b")])
    answers.write(output("b"))
    answers.close()
    whole = (tmp_path / "out").read_text()
    (tmp_path / "out").write_text(whole + torn)
    again = Answers(tmp_path / "out", [request("a"), request("b")])
    again.close()
    assert [r.id for r in again.missing] == ["a"]
    assert (tmp_path / "out").read_text() == whole


def test_two_runs_do_not_write_to_one_file(tmp_path):
    first = Answers(tmp_path / "out", [request("a")])
    with pytest.raises(ValueError, match="out is being written by another run"):
        Answers(tmp_path / "out", [request("a")])
    first.write(output("a"))
    first.close()
    second = Answers(tmp_path / "out", [request("a")])
    second.close()
    assert second.missing == []


def test_a_file_that_is_mended_is_held_as_firmly(tmp_path):
    (tmp_path / "out").write_text('{"id": "a", "cl')
    first = Answers(tmp_path / "out", [request("a")])
    with pytest.raises(ValueError, match="another run"):
        Answers(tmp_path / "out", [request("a")])
    first.close()


@pytest.mark.parametrize("text", ['{"id": "a", "prompt_ids": [1]}\n', "[1]\n", "hello\n", "hello", '{"torn'])
def test_a_file_that_holds_no_answers_is_refused_and_left_as_it_was(tmp_path, text):
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(ValueError, match="line 1 is not an answer of an earlier run"):
        Answers(path, [request("a")])
    assert path.read_text() == text


def test_requests_are_not_taken_for_their_answers(tmp_path):
    """`--out` by mistake the file of requests: lines of theirs would be dropped as half an answer."""
    path = infos(tmp_path, '{"prompt_ids": [1], "id": "a", "n": 2}')
    before = path.read_text()
    with pytest.raises(ValueError, match="not an answer"):
        Answers(path, read(path, None))
    assert path.read_text() == before


def test_answers_go_to_a_file_that_can_be_read_again(tmp_path):
    with pytest.raises(ValueError, match="/dev/null is not a file"):
        Answers(Path("/dev/null"), [request("a")])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Answers(tmp_path / "nowhere" / "out", [request("a")])


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.serving.offline.test_requests_file import Answers, output, request
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
answers = Answers(Path(sys.argv[1]), [request(str(i)) for i in range(9)])
try:
    for i in range(9):
        answers.write(output(str(i)))
except OSError as why:
    print(why)
finally:
    answers.close()
"""


def test_a_full_disk_is_named_with_its_file_and_loses_no_answer_that_was_written(tmp_path):
    path = tmp_path / "out"
    told = subprocess.run(
        [sys.executable, "-c", FULL, path], cwd=Path(__file__).parents[3], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert str(path) in told.stdout
    assert path.stat().st_size == 500, "the last line is torn"
    whole = path.read_bytes().count(b"\n")
    again = Answers(path, [request(str(i)) for i in range(9)])
    again.close()
    assert [r.id for r in again.missing] == [str(i) for i in range(whole, 9)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 500
