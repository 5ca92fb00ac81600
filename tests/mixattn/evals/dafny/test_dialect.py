"""Rewritten for Dafny 2.3, a program proves the same."""

from mixattn.evals.dafny import strict
from mixattn.evals.dafny.dialect import level_for, rewrite
from mixattn.evals.dafny.strip import strip

NEW = """ghost predicate Positive(x: int) { x > 0 }
function Twice(x: int): int { 2 * x }
method Up(n: nat) returns (s: int) ensures s == Twice(n)
{
  s := 0;
  for i := 0 to n
    invariant s == 2 * i
  {
    s := s + Twice(1);
  }
  for j: int := n downto 0 invariant s == 2 * n { s := s + 0; }
}
"""


def test_a_program_of_dafny_4_verifies_after_rewriting(verify):
    level = level_for(NEW, verify)
    assert level == 2
    assert verify(rewrite(NEW, level)).verdict == "verified"
    assert verify(rewrite(NEW.replace("s + Twice(1)", "s + 1"), level)).verdict == "failed"


def test_level_0_changes_nothing_and_level_1_no_old_program():
    old = "function method F(): int { 1 }\nmethod M() { while true decreases * { } }\n"
    assert rewrite(NEW, 0) == NEW
    assert rewrite(old, 1) == old


COMMENTED = """method Sum(n: nat) returns (s: int) ensures s == n
{
  s := 0;
  for i := 0 /* from */ to n // up to here
    // every round adds one
    invariant s == i
  {
    s := s + 1;
  }
}
"""


def test_comments_behind_a_range_swallow_nothing(verify):
    assert verify(rewrite(COMMENTED, 1)).verdict == "verified"
    assert verify(rewrite(COMMENTED.replace("s + 1", "s + 2"), 1)).verdict == "failed"


def test_hints_do_not_change_how_code_is_rewritten():
    bare = strip(NEW)
    hinted = NEW.replace("  s := 0;\n", "  s := 0;\n  assert forall k: int :: k in {k};\n")
    for level in (1, 2, 3):
        texts = [rewrite(program, level) for program in (NEW, bare, hinted)]
        assert strict.cheats(*texts) == ()


def test_what_cannot_be_read_stays_as_it_is():
    for text in ("for i := 0", "for i := 0 to {", "/* for", "for i := 0 {}", "for x to 3 {"):
        assert rewrite(text, 3) == text
