"""Ways to make a verifier say yes, each a whole program; and honest solutions."""

from collections.abc import Iterator
from typing import Any

from mixattn.evals.dafny import official, strict
from mixattn.evals.dafny.protocol import Verify

TASK = """method Total(n: nat) returns (s: nat)
  ensures s == n * (n + 1) / 2
{
  var i := 0;
  s := 0;
  while i < n
  {
    i := i + 1;
    s := s + i;
  }
}

function Half(n: nat): nat { n / 2 }

lemma HalfIsSmall(n: nat)
  ensures Half(n) <= n
{
}

method Fill(a: array<int>)
  modifies a
  ensures forall k :: 0 <= k < a.Length ==> a[k] == 0
{
  forall i | 0 <= i < a.Length { a[i] := 0; }
}
"""
SOLUTION = TASK.replace("while i < n\n", "while i < n\n    invariant i <= n && s == i * (i + 1) / 2\n")
LOOP = "while i < n\n    invariant i <= n && s == i * (i + 1) / 2\n"


def solved(old: str, new: str) -> str:
    """The solution with one place changed."""
    assert SOLUTION.count(old) >= 1, old
    return SOLUTION.replace(old, new, 1)


def before_end(statement: str) -> str:
    """The bare task with a statement behind the loop."""
    return TASK.replace("    s := s + i;\n  }\n", f"    s := s + i;\n  }}\n  {statement}\n", 1)


SPEC = "ensures s == n * (n + 1) / 2"
CHEATS = {
    # assume, in every place and spelling
    "assume false": before_end("assume false;"),
    "assume with two blanks": before_end("assume  false;"),
    "assume over two lines": before_end("assume\n    false;"),
    "assume with a comment inside": before_end("assume/**/false;"),
    "assume the goal": before_end("assume s == n * (n + 1) / 2;"),
    "assume a contradiction": before_end("assume 1 == 0;"),
    "assume an axiom": before_end("assume {:axiom} false;"),
    "assume in an assert's proof": before_end("assert s == n * (n + 1) / 2 by { assume false; }"),
    "assume in a calc": before_end("calc { s; == { assume false; } n * (n + 1) / 2; }"),
    "assume in a forall": before_end("forall x: int ensures s == n * (n + 1) / 2 { assume false; }"),
    "assume in a helper lemma": before_end("Help(s, n);")
    + "lemma Help(s: nat, n: nat) ensures s == n * (n + 1) / 2 { assume false; }\n",
    "assume in a helper function": before_end("assert Help(s, n);")
    + "function Help(s: nat, n: nat): bool ensures s == n * (n + 1) / 2 { assume false; true }\n",
    "assume as an expression": before_end("assert (assume false; s == n * (n + 1) / 2);"),
    "assume behind such that": before_end("ghost var z: int :| assume z == 1 && z == 2;"),
    "assume in a ghost if": before_end("if n > 0 { assume false; } else { assume false; }"),
    "assume behind a lone carriage return": before_end("// a comment\r  assume false;"),
    "assume behind a string with a comment mark": before_end('ghost var z := "/*"; assume false; // */'),
    "assume in an invariant": solved("invariant i <= n", "invariant (assume false; true) && i <= n"),
    "expect": before_end("expect false;"),
    # declarations without a body
    "lemma without body": before_end("Help();") + "lemma Help() ensures false\n",
    "lemma without body, axiom": before_end("Help();") + "lemma {:axiom} Help() ensures false\n",
    "function without body": before_end("assert Help() == 0;") + "function Help(): int ensures false\n",
    "method without body": TASK.split("{\n", 1)[0] + TASK.split("}\n\n", 1)[1],
    "forall without body": before_end("forall x: int ensures s == n * (n + 1) / 2;"),
    "loop without body": solved("{\n    i := i + 1;\n    s := s + i;\n  }\n", "\n"),
    "loop cut from its body": solved(LOOP, LOOP.rstrip() + "\n assert true;\n"),
    "loop without body in a helper lemma": before_end("Help();")
    + "lemma Help() ensures false { var b := true; while b invariant true }\n",
    "forall without body in a helper lemma": before_end("Help();")
    + "lemma Help() ensures false { forall x: int ensures false; assert false; }\n",
    "body of a lemma dropped": solved("  ensures Half(n) <= n\n{\n}\n", "  ensures Half(n) <= n\n"),
    # attributes
    "verify false": TASK.replace("method Total", "method {:verify false} Total"),
    "verify false with two blanks": TASK.replace("method Total", "method {:verify  false} Total"),
    "verify not true": TASK.replace("method Total", "method {: verify /**/ !true} Total"),
    "verify over lines": TASK.replace("method Total", "method {:\n verify\n false} Total"),
    "extern": TASK.replace("method Total", "method {:extern} Total"),
    "axiom on the method": TASK.replace("method Total", "method {:axiom} Total"),
    "selective checking": TASK.replace("method Total", "method {:selective_checking} Total"),
    "checks become assumptions": before_end("assert {:assumption} s == n * (n + 1) / 2;"),
    "an unknown attribute on a hint": before_end("assert {:only} true;"),
    "an unknown attribute on a helper": SOLUTION + "lemma {:verify false} Help() ensures false {}\n",
    "at-attribute": TASK.replace("method Total", "@Verify(false) method Total"),
    # specifications
    "free ensures": solved(SPEC, "free " + SPEC),
    "weaker postcondition": solved(SPEC, "ensures true"),
    "weakened on the next line": solved(SPEC, SPEC + "\n    || true"),
    "dropped postcondition": solved("  " + SPEC + "\n", ""),
    "postcondition in a comment": solved(SPEC, "// " + SPEC),
    "requires false": solved("  " + SPEC, "  requires false\n  " + SPEC),
    "decreases *": solved(LOOP, LOOP + "    decreases *\n").replace(SPEC, SPEC + "\n  decreases *"),
    "decreases * and an endless loop": TASK.replace(SPEC, SPEC + "\n  decreases *").replace(
        "while i < n\n", "while i < n\n    decreases *\n"
    ),
    "directive around the specification": solved(
        "  " + SPEC + "\n", "/*\n#if NEVER\n*/\n  " + SPEC + "\n/*\n#endif\n*/\n"
    ),
    "directive around the program": "#if NEVER\n" + TASK + "#endif\n",
    "type made smaller": solved("a: array<int>", "a: array<nat>"),
    "parameter made smaller": solved("lemma HalfIsSmall(n: nat)", "lemma HalfIsSmall(n: int)"),
    "ghost result": solved("returns (s: nat)", "returns (ghost s: nat)"),
    # code
    "changed code": solved("s := s + i;", "s := s + i + 0;"),
    "closed formula instead of the loop": solved("s := 0;", "s := 0; s := n * (n + 1) / 2; return;"),
    "dropped statement": solved("  forall i | 0 <= i < a.Length { a[i] := 0; }\n", ""),
    "a new variable in code": before_end("var z := 1;"),
    "an assignment in code": before_end("s := n * (n + 1) / 2;"),
    "a ghost variable of an old name": solved("  s := 0;\n", "  s := 0;\n  { ghost var n := 0; n := 1; }\n"),
    "changed definition": solved("n / 2 }", "0 }"),
    "changed order": "function Half(n: nat): nat { n / 2 }\n"
    + SOLUTION.replace("function Half(n: nat): nat { n / 2 }\n", ""),
    "renamed": solved("method Total", "method Sum"),
    "a new method": SOLUTION + "method Other() { }\n",
    "a new compiled function": SOLUTION + "function method Other(): int { 0 }\n",
    "a new type": SOLUTION + "datatype Other = A | B\n",
    "a name defined twice": SOLUTION + "module M { function Half(n: nat): nat { 0 } }\n",
    "include": 'include "other.dfy"\n' + SOLUTION,
    "import": "module Z { }\nimport Z\n" + SOLUTION,
    "nothing": "",
    "only a comment": "// " + SOLUTION.replace("\n", "\n// "),
}
HONEST = {
    "the solution": SOLUTION,
    "the words in a comment": solved(
        "  s := 0;\n", "  s := 0;  // we assume false nothing {:verify false}\n"
    ),
    "the words in a nested comment": solved("  s := 0;\n", "  s := 0; /* /* assume */ false */\n"),
    "a helper lemma": before_end("").replace("while i < n\n", LOOP + "")
    + "lemma Help(n: nat) requires n > 2 ensures n * n > 4 { }\n",
    "a helper lemma that is called": solved("    s := s + i;\n", "    s := s + i;\n    Help(i);\n")
    + "lemma Help(n: nat) ensures n * n >= n { }\n",
    "a helper predicate": SOLUTION.replace("invariant i <= n", "invariant Below(i, n)")
    + "predicate Below(i: int, n: int) { i <= n }\n",
    "a forall with a proof": solved(
        "    s := s + i;\n", "    s := s + i;\n    forall x: int ensures x * x >= 0 { }\n"
    ),
    "an assertion with a proof": solved(
        "    s := s + i;\n", "    s := s + i;\n    assert i > 0 by { assert i >= 1; }\n"
    ),
    "a calc": solved("    s := s + i;\n", "    s := s + i;\n    calc { i; == { assert true; } i + 0; }\n"),
    "a ghost variable": solved("  s := 0;\n", "  s := 0;\n  ghost var z := 0;\n  z := z + 1;\n"),
    "a ghost if": solved("    s := s + i;\n", "    s := s + i;\n    if i > 3 { assert i > 2; } else { }\n"),
    "a lemma call of the task": solved("    s := s + i;\n", "    s := s + i;\n    HalfIsSmall(i);\n"),
    "decreases": solved(LOOP, LOOP + "    decreases n - i\n"),
    "a trigger": solved(
        "    s := s + i;\n",
        "    s := s + i;\n    assert forall k {:trigger Half(k)} :: k > 0 ==> Half(k) < k;\n",
    ),
    "other blanks": SOLUTION.replace("  ", "\t").replace("\n", "\r\n"),
    "a byte-order mark": "\ufeff" + SOLUTION,
    "an invariant over lines": solved("i <= n && s", "i <= n\n   && s"),
    "old semicolons": solved("(i + 1) / 2\n", "(i + 1) / 2;\n"),
}


def judged(verify: Verify) -> Iterator[dict[str, Any]]:
    """A row for each program: whether the verifier, the public check with it, and ours let it pass."""
    for kind, programs in (("cheat", CHEATS), ("honest", HONEST)):
        for name, program in programs.items():
            found = verify(program)
            public = official.verified(found.output) and not official.cheats(TASK, program)
            refused = strict.cheats(SOLUTION, TASK, program)
            yield {
                "kind": kind,
                "name": name,
                "verifier": found.verdict,
                "exit_0": found.verdict in ("verified", "empty"),
                "public_check_accepts": public,
                "ours_accepts": not refused and found.verdict == "verified",
                "our_reason": refused[0].rule if refused else "",
            }
