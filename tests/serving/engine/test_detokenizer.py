"""Text as ids come: nothing of a stop text leaks, no half characters, and the pieces add up."""

from hypothesis import example, given
from hypothesis import strategies as st

from serving.engine.detokenizer import IncrementalDetokenizer
from tests.serving.tiny import byte_text


def stream(text: IncrementalDetokenizer, data: bytes) -> tuple[str, int]:
    """What is shown, and how many bytes were taken."""
    shown = ""
    for n, byte in enumerate(data, 1):
        stopped = text.push(byte)
        shown += text.pull()
        if stopped:
            return shown, n
    text.close()
    return shown + text.pull(), len(data)


@given(
    data=st.text(alphabet="abé€😀", max_size=20),
    stop=st.lists(st.text(alphabet="abé€😀", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
)
def test_shown_text_is_the_text_before_the_first_stop(data, stop, include):
    text = IncrementalDetokenizer(byte_text, stop, include_stop=include)
    shown, _ = stream(text, data.encode())
    ends = [(data.find(s) + len(s), data.find(s), s) for s in stop if s in data]
    if not ends:
        assert shown == data
        assert text.stopped_by is None
        return
    # Whoever is complete first ends it; of those complete at once the one that began first.
    end = min(e for e, _, _ in ends)
    at, first = min((a, s) for e, a, s in ends if e == end)
    assert text.stopped_by == first
    assert shown == (data[:end] if include else data[:at])


@given(data=st.text(alphabet="abé😀", max_size=12), stop=st.text(alphabet="abé😀", min_size=2, max_size=4))
def test_at_no_time_is_a_part_of_a_stop_text_shown_that_then_completes(data, stop):
    text, shown = IncrementalDetokenizer(byte_text, [stop]), ""
    for byte in (data + stop).encode():
        done = text.push(byte)
        shown += text.pull()
        assert stop not in shown
        assert "\ufffd" not in shown
        if done:
            break
    assert (data + stop).startswith(shown + stop)


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    assert stream(IncrementalDetokenizer(byte_text), b"ab\xf0\x9f") == ("ab\ufffd", 4)


def test_broken_bytes_do_not_hold_text_back_for_ever():
    text = IncrementalDetokenizer(byte_text)
    for byte in b"\xff" * 40:
        text.push(byte)
    assert len(text.pull()) >= 32


def test_no_stop_before_its_time():
    text = IncrementalDetokenizer(byte_text, ["b"])
    assert not text.push(ord("b"), may_stop=False)
    assert text.push(ord("b"))
    assert text.pull() == "b"


def test_what_stands_before_an_unfinished_character_is_shown_and_may_stop_at_once():
    """A token may hold a letter and the beginning of the next character."""
    table = [b"a", b"x\xe2", b"\x82\xac"]

    def decode(ids):
        return b"".join(table[i] for i in ids).decode("utf-8", "replace")

    text = IncrementalDetokenizer(decode)
    shown = []
    for id in (0, 1, 2, 0):
        assert not text.push(id)
        shown.append(text.pull())
    assert shown == ["a", "x", "€", "a"]
    text = IncrementalDetokenizer(decode, ["x"])
    assert not text.push(0)
    assert text.push(1), "not one token later, nor never"
    assert (text.pull(), text.stopped_by) == ("a", "x")


def test_text_without_stop_texts_is_decoded_once_a_pull():
    calls = 0

    def decode(ids):
        nonlocal calls
        calls += 1
        return byte_text(ids)

    text, shown = IncrementalDetokenizer(decode), ""
    for i in range(0, 64, 8):
        for byte in range(i, i + 8):
            text.push(byte)
        shown += text.pull()
    assert shown == bytes(range(64)).decode()
    assert calls <= 16, "one a pull, and one where the window moves on"


def in_pieces(decode, data, every):
    """What is shown of the bytes of `data`, looked at now and then; never anything that is not there."""
    text, shown = IncrementalDetokenizer(decode), ""
    for n, byte in enumerate(data.encode()):
        text.push(byte)
        if n % every == 0:
            shown += text.pull()
            assert data.startswith(shown)
    text.close()
    return shown + text.pull()


@given(st.text(alphabet="abé€😀\ufffd", max_size=40), st.integers(1, 40))
@example("\ufffd" * 5 + "€", 1)
@example("\ufffd" * 9 + "😀" * 9, 19)
def test_pieces_add_up_however_many_ids_come_between_two_pulls(data, every):
    assert in_pieces(byte_text, data, every) == data


def one_by_one(ids):
    """A decoder like that of byte tokens in SentencePiece: one bad byte spoils its whole run."""
    data = bytes(ids)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)


@given(st.text(alphabet="é€😀", max_size=30), st.integers(1, 5))
def test_a_decoder_that_takes_back_what_it_said_of_unfinished_bytes_is_not_believed(data, every):
    assert in_pieces(one_by_one, data, every) == data


def piece_text(ids) -> str:
    """A decoder like SentencePiece's: pieces carry their space, and a text's first space is dropped."""
    return "".join(PIECES[i] for i in ids).replace("\u2581", " ").removeprefix(" ")


PIECES = ["\u2581hello", "\u2581world", "!", "\u2581wide"]


def test_the_first_word_keeps_its_space_behind_a_prompt():
    text = IncrementalDetokenizer(piece_text, [" world"], prompt=[0])
    assert not text.push(3)
    assert text.pull() == " wide"
    assert text.push(1), "the stop text with its space is found"
    assert text.stopped_by == " world"
    assert text.pull() == ""


def test_at_the_beginning_of_a_text_there_is_no_space():
    text = IncrementalDetokenizer(piece_text, prompt=[])
    text.push(1)
    assert text.pull() == "world"


@given(prompt=st.text(alphabet="abé😀", max_size=12), data=st.text(alphabet="abé😀", max_size=12))
def test_text_is_what_the_ids_add_to_the_prompts_text(prompt, data):
    shown, _ = stream(IncrementalDetokenizer(byte_text, prompt=list(prompt.encode())), data.encode())
    assert shown == data


def test_a_prompt_that_ends_inside_a_character_is_no_context():
    assert stream(IncrementalDetokenizer(byte_text, prompt=list(b"a\xf0\x9f")), b"bc") == ("bc", 2)
