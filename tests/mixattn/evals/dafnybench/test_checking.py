"""One solution against one task: verdict, cheats, and words of Dafny 4 under Dafny 2.3."""

import pytest

from mixattn.evals.dafny.protocol import Verification
from mixattn.evals.dafny.scripted import ScriptedVerifier
from mixattn.evals.dafny.strip import strip
from mixattn.evals.dafnybench.checking import Task, check, check_in_dialect

NEW = """ghost function Twice(n: nat): nat { 2 * n }
function Next(n: nat): nat { n + 1 }
method Double(n: nat) returns (s: nat)
  ensures s == Twice(n)
{
  s := 0;
  for i := 0 to n
    invariant s == Twice(i)
  {
    s := Next(Next(s));
  }
}
"""
TASK = Task("new", NEW, strip(NEW))
OLD = Task("old", "method M(x: int) returns (y: int) ensures y > x { assert x < x + 1; y := x + 1; }", "")
OLD = Task("old", OLD.original, strip(OLD.original))


def test_a_program_of_dafny_4_is_rewritten_on_both_sides(verify):
    assert check_in_dialect(TASK, NEW, 0, verify).verdict == "parse"
    assert check_in_dialect(TASK, NEW, 2, verify).accepted
    assert check_in_dialect(TASK, NEW, 2, verify, "official").accepted
    assert check_in_dialect(TASK, TASK.stripped, 2, verify).verdict == "failed"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ghost function Twice", "function Twice"),
        ("ghost function Twice", "function method Twice"),
        ("for i := 0 to n", "for i := n downto 0"),
        ("s := 0;", "s := 0; assume false;"),
        ("function Next", "opaque function Next"),
    ],
)
def test_rewriting_hides_no_change(old, new):
    gullible = ScriptedVerifier(lambda _: "verified")
    found = check_in_dialect(TASK, NEW.replace(old, new, 1), 2, gullible)
    assert (found.accepted, found.verdict) == (False, "refused")


def test_procedures_of_the_original_must_all_be_verified():
    def decide(program):
        return Verification("verified", n_verified=1, procedures=("M",) if "assert" in program else ("N",))

    task = Task("t", OLD.stripped, OLD.stripped)
    found = check(task, OLD.original, ScriptedVerifier(decide))
    assert [(c.rule, c.text) for c in found.cheats] == [("not verified", "N")]


def test_what_is_believed_without_proof_is_refused_where_the_original_believes_nothing():
    class Verifier(ScriptedVerifier):
        def __call__(self, program, *, flags=(), tries=1):
            honest = not flags or program == OLD.original
            return Verification("verified" if honest else "failed", n_verified=1)

    verifier = Verifier(lambda _: "verified")
    assert check(OLD, OLD.original, verifier).accepted
    found = check(OLD, OLD.original.replace("assert", "assert true; assert"), verifier)
    assert [c.rule for c in found.cheats] == ["believed without proof"]


def test_a_time_out_counts_only_when_it_comes_twice():
    for tries, accepted in ((1, False), (2, True)):
        seen = []

        class Slow(ScriptedVerifier):
            def __call__(self, program, *, flags=(), tries=1, seen=seen, good=tries):
                seen.append(tries)
                return Verification("timeout" if tries < good or good == 1 else "verified", n_verified=1)

        assert check(OLD, OLD.original, Slow(lambda _: "timeout")).accepted is accepted
        assert seen[:2] == [1, 2]
