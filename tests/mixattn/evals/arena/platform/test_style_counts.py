from mixattn.evals.arena.platform.style_counts import of_conversations

MARKED = """# Title
Some **bold** and __more__ words, not **broken
1. one
2. two
- three
```
# a comment in code
- no list
```
"""


def talk(*answers):
    return [
        m
        for text in answers
        for m in ({"role": "user", "content": "# q"}, {"role": "assistant", "content": text})
    ]


def test_marks_of_both_sides_are_counted_over_all_turns_and_code_is_no_markup():
    found = of_conversations([talk(MARKED, "### again"), talk("plain words only")])
    assert found["header_count_a"] == {"h1": 1, "h2": 0, "h3": 1, "h4": 0, "h5": 0, "h6": 0}
    assert found["list_count_a"] == {"ordered": 2, "unordered": 1}
    assert found["bold_count_a"] == {"**": 1, "__": 1}
    assert found["sum_assistant_a_tokens"] == len(MARKED.split()) + 2
    assert found["sum_assistant_b_tokens"] == 3
    assert sum(found["list_count_b"].values()) == 0
