"""Tokens are Dafny's, whatever comments, strings and line ends surround them."""

import pytest

from mixattn.evals.dafny.lexer import DafnyTextError, directives, lex, partners


@pytest.mark.parametrize(
    ("program", "texts"),
    [
        ("a /* x /* y */ z */ b", ["a", "b"]),
        ("a // x\rb", ["a", "b"]),
        ("/*/ x */ b", ["b"]),
        ("x' := '\"';", ["x'", ":=", "'\"'", ";"]),
        ('@"a""/*" b', ['@"a""/*"', "b"]),
        (r'"\"/*" b', [r'"\"/*"', "b"]),
        ("5assume", ["5", "assume"]),
        ("0xassume", ["0xa", "ssume"]),
        ("a<==>b:|c", ["a", "<==>", "b", ":|", "c"]),
    ],
)
def test_tokens(program, texts):
    assert [t.text for t in lex(program)] == texts


@pytest.mark.parametrize("program", ["/* /* */", '"abc', "\0", '"abc\n"'])
def test_what_does_not_end_is_refused(program):
    with pytest.raises(DafnyTextError):
        lex(program)


@pytest.mark.parametrize("program", ["(", ")", "(]", "{" * 10_000])
def test_brackets_pair_up(program):
    with pytest.raises(DafnyTextError):
        partners(lex(program))


def test_lines_are_counted_over_every_line_end():
    assert [t.line for t in lex('a\nb\r\nc\rd /* \n\r\n */ e @"\n" f')] == [1, 2, 3, 4, 6, 6, 7]


def test_directives_are_found_inside_comments():
    assert directives("/*\n#if X\n*/\n  #endif\nx # if") == [(2, "#if X"), (4, "#endif")]
