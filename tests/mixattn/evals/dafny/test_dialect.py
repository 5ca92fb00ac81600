"""Rewritten for Dafny 2.3, a program proves the same."""

from mixattn.evals.dafny.dialect import level_for, rewrite

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
