"""Text as ids come: nothing of a stop text leaks, no half characters, and the pieces add up."""

from hypothesis import given
from hypothesis import strategies as st

from serving.text import Text
from tests.serving.tiny import byte_text


def stream(text: Text, data: bytes) -> tuple[str, int]:
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
    text = Text(byte_text, stop, include_stop=include)
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
    text, shown = Text(byte_text, [stop]), ""
    for byte in (data + stop).encode():
        done = text.push(byte)
        shown += text.pull()
        assert stop not in shown
        assert "\ufffd" not in shown
        if done:
            break
    assert (data + stop).startswith(shown + stop)


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    assert stream(Text(byte_text), b"ab\xf0\x9f") == ("ab\ufffd", 4)


def test_broken_bytes_do_not_hold_text_back_for_ever():
    text = Text(byte_text)
    for byte in b"\xff" * 40:
        text.push(byte)
    assert len(text.pull()) >= 32


def test_no_stop_before_its_time():
    text = Text(byte_text, ["b"])
    assert not text.push(ord("b"), may_stop=False)
    assert text.push(ord("b"))
    assert text.pull() == "b"
