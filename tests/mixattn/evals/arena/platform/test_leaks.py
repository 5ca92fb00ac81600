import pytest

from mixattn.evals.arena.platform.leaks import find_leak, leak_words

WORDS = leak_words(["zebrafish-70x", "o9"], ["Fischlein"])


@pytest.mark.parametrize(
    "text",
    [
        "I am Zebrafish.",
        "z-e-b-r-a-f-i-s-h",
        "ＺＥＢＲＡＦＩＳＨ",
        "zébrafish",
        "zеbrаfish with two Cyrillic letters",
        "As a model by OpenAI, I cannot",
        "我是文心一言",
        "Mein Name ist FISCHLEIN",
    ],
)
def test_a_name_is_found_in_every_spelling(text):
    assert find_leak(["harmless", text], WORDS)


@pytest.mark.parametrize("text", ["", "A fish is not a zebra.", "The open air is fine", "70 times 9"])
def test_harmless_text_is_left_alone(text):
    assert find_leak([text], WORDS) is None
