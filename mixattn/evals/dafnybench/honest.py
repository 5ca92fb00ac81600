"""Honest solutions: hints of every kind, and words that look like cheats where they mean nothing."""

from mixattn.evals.dafnybench.cheat_task import LOOP, SOLUTION, SPEC, STEP, edited, in_loop, with_top

_SQUARE = "ensures k * k >= k"
_HALF = "function Half(n: nat): nat { n / 2 }"
_LEMMA_BODY = "  ensures Half(n) <= n\n{\n}"

# A statement at the end of the loop's body.
_STATEMENT = {
    "an assertion with a proof": "assert i > 0 by { assert i >= 1; }",
    "a proof in a proof": "assert i > 0 by { assert i >= 1 by { assert true; } }",
    "a forall in a proof": "assert i > 0 by { forall x: int ensures x * x >= 0 { } }",
    "a calc in a proof": "assert i > 0 by { calc { i; i + 0; } }",
    "variables in a proof": "assert i > 0 by { var q := 1; if q == 1 { assert i > 0; } }",
    "a labelled assertion": "assert Positive: i > 0;",
    "a label": "label Here: assert true;",
    "a forall with a proof": "forall x: int ensures x * x >= 0 { }",
    "a forall with a call": "forall x: nat | x > 0 ensures Half(x) <= x { HalfIsSmall(x); }",
    "a forall in parentheses": "forall (x: nat | x > 0) ensures Half(x) <= x { HalfIsSmall(x); }",
    "a calc": "calc { i; == { assert true; } i + 0; }",
    "a calc of another relation": "calc { 2 * i; >= { assert i >= 0; } i; }",
    "a calc with its operator in front": "calc ==> { i > 3; i > 2; i > 1; }",
    "a calc with two hints": "calc { i + 0; == { HalfIsSmall(i); } { assert true; } i; }",
    "a calc with the words in comments": "calc { i + 0; == /* assume */ // assume false\n i; }",
    "a ghost block": "{ ghost var q := 1; assert q == 1; }",
    "a ghost if": "if i > 3 { assert i > 2; } else { }",
    "a ghost else if": "if i > 3 { assert i > 2; } else if i > 1 { assert i > 0; } else { assert i < 10; }",
    "a ghost if of anything": "if * { assert true; }",
    "a ghost if with cases": "if { case i > 0 => assert i > 0; case true => assert true; }",
    "a call in a ghost if": "if i > 1 { HalfIsSmall(i); }",
    "a dead branch": "if i < 0 { assert false; }",
    "a lemma call of the task": "HalfIsSmall(i);",
    "ghost variables": "ghost var p, q := 1, 2; p, q := q, p;",
    "a ghost variable without a value": "ghost var q: int; q := 3;",
    "a ghost variable such that": "ghost var q :| q > i; assert q > i;",
    "a ghost variable in both branches": "ghost var q := 0; if i > 1 { q := 1; } else { q := 2; }",
    "a ghost function value": "ghost var f := (x: int) => x + 1; assert f(1) == 2;",
    "a ghost map": "ghost var q: map<int, seq<int>> := map[1 := []]; q := q[3 := [1]];",
    "a ghost set": "ghost var q := {1, 2}; q := q + {3};",
    "a map of all": "ghost var q := map x | 0 <= x < 3 :: x + 1; assert q[1] == 2;",
    "bars": "ghost var q := [1]; assert |q| == 1; assert forall k :: 0 <= k < |q| ==> q[k] == 1;",
    "the words in a string": 'ghost var q := "assume false"; ghost var p := @"assume ""false";',
    "quote characters": "ghost var q := '\"'; ghost var r := '\\\\';",
    "specification words in a comment": "// requires nothing, ensures nothing",
    "specification words in a comment of two lines": "/* ensures\n false */",
    "letters of other alphabets in a comment": "// \u00e9t\u00e9 \u2200x",
    "an if in an assertion": "assert if i > 0 then true else true;",
    "a let in an assertion": "assert var q := i; q == i;",
    "a set in an assertion": "assert (forall x :: x in {1, 2} ==> x > 0);",
    "a trigger": "assert forall k {:trigger Half(k)} :: k > 0 ==> Half(k) < k;",
    "two triggers": "assert forall j: nat, k: nat {:trigger Half(j), Half(k)} :: Half(j) + Half(k) >= 0;",
    "split here": "assert {:split_here} true;",
}

# A statement at the end of the loop's body and a new declaration.
_HELPED = {
    "a helper lemma that is called": ("Help(i);", f"lemma Help(k: nat) {_SQUARE} {{ }}"),
    "a helper lemma that calls itself": (
        "Help(i);",
        f"lemma Help(k: nat) {_SQUARE} decreases k {{ if k > 0 {{ Help(k - 1); }} }}",
    ),
    "a helper lemma by induction": (
        "Help(i);",
        f"lemma {{:induction k}} Help(k: nat)\n  requires k >= 0\n  {_SQUARE}\n{{ }}",
    ),
    "a helper lemma without induction": (
        "Help(i);",
        f"lemma {{:induction false}} Help(k: nat) {_SQUARE} {{ }}",
    ),
    "a helper lemma of any type": ("Same<int>(i);", "lemma Same<T>(x: T) ensures x == x { }"),
    "a helper lemma with a result": (
        "ghost var q := Find(i);",
        "lemma Find(k: nat) returns (j: nat) ensures j > k { j := k + 1; }",
    ),
    "a helper lemma's result, assigned": (
        "ghost var q; q := Find(i);",
        "lemma Find(k: nat) returns (j: nat) ensures j > k { j := k + 1; }",
    ),
    "a helper lemma about a set": ("Help(i);", "lemma Help(k: int) ensures k in {1, 2} ==> k > 0 { }"),
    "a helper that is revealed": ("reveal Op();", "predicate {:opaque} Op(k: int) { true }"),
}

_DECLARATION = {
    "a helper lemma": "lemma Help(n: nat) requires n > 2 ensures n * n > 4 { }",
    "a lemma with a loop": "lemma Help(k: nat) { var j := 0; while j < k decreases k - j { j := j + 1; } }",
    "a lemma that returns": "lemma Help(k: nat) ensures k >= 0 { if k == 0 { return; } assert k > 0; }",
    "a lemma over two states": "twostate lemma Help(k: array<int>) ensures old(k.Length) == k.Length { }",
    "a lemma about all of a set": "lemma Help(k: int) requires k in set x | 0 < x < 5 :: x ensures k > 0 { }",
    "a lemma about sequences": "lemma Help(a: seq<int>) requires forall i :: 0 <= i < |a| ==> a[i] > 0"
    " ensures |a| >= 0 { }",
    "a lemma about maps": "lemma Help(m: map<int, set<int>>) requires 1 in m ensures m[1] == m[1] { }",
    "a lemma that ends with a set": "lemma Help(x: int) requires x == 1 ensures {x} == {1} { }",
    "a lemma with an if": "lemma Help(b: bool) ensures if b then b else !b { }",
    "a helper function": "function Sum(k: nat): nat decreases k { if k == 0 then 0 else k + Sum(k - 1) }",
    "a helper function with a promise": "function Next(k: nat): nat ensures Next(k) >= k { k + 1 }",
    "a helper function of a function": "function Call(g: int -> int, k: int): int { g(k) }",
    "an inductive predicate": "inductive predicate Even(k: int) { k == 0 || Even(k - 2) }",
}

HONEST = {
    "the solution": SOLUTION,
    **{name: in_loop(statement) for name, statement in _STATEMENT.items()},
    **{name: in_loop(statement, f"{text}\n") for name, (statement, text) in _HELPED.items()},
    **{name: with_top(declaration) for name, declaration in _DECLARATION.items()},
    "the words in a comment": edited(
        "  s := 0;\n", "  s := 0;  // we assume false nothing {:verify false}\n"
    ),
    "the words in a nested comment": edited("  s := 0;\n", "  s := 0; /* /* assume */ false */\n"),
    "the words in every comment": SOLUTION.replace("\n", " // assume false {:verify false}\n"),
    "a helper lemma in front": f"lemma Help(k: nat) {_SQUARE} {{ }}\n" + in_loop("Help(i);"),
    "a helper lemma in between": in_loop("Help(i);").replace(
        _HALF, f"lemma Help(k: nat) {_SQUARE} {{ }}\n\n{_HALF}"
    ),
    "a helper predicate": edited("invariant i <= n", "invariant Below(i, n)")
    + "predicate Below(i: int, n: int)\n{\n  && 0 <= i\n  && i <= n\n}\n",
    "a helper function in an invariant": edited("invariant i <= n", "invariant i <= n && s == Sum(i)")
    + "function Sum(k: nat): nat { if k == 0 then 0 else k + Sum(k - 1) }\n",
    "a ghost variable": edited("  s := 0;\n", "  s := 0;\n  ghost var z := 0;\n  z := z + 1;\n"),
    "a ghost history": edited("  s := 0;\n", "  s := 0;\n  ghost var trace: seq<int> := [];\n").replace(
        STEP, f"{STEP}    trace := trace + [s];\n"
    ),
    "decreases": edited(LOOP, f"{LOOP}    decreases n - i\n"),
    "decreases in front": edited(LOOP, LOOP.replace("    inv", "    decreases n - i\n    inv")),
    "decreases with two parts": edited(LOOP, f"{LOOP}    decreases n - i, 0\n"),
    "decreases with an if": edited(LOOP, f"{LOOP}    decreases if i < n then n - i else 0\n"),
    "decreases of a method": edited(SPEC, f"{SPEC}\n  decreases n"),
    "decreases of a function": edited(_HALF, _HALF.replace("{", "\n  decreases n\n{")),
    "an assertion in a function": edited("{ n / 2 }", "{ assert n >= 0; n / 2 }"),
    "a lemma call in a function": edited("{ n / 2 }", "{ Help(n); n / 2 }")
    + f"lemma Help(k: nat) {_SQUARE} {{ }}\n",
    "a lemma's body": edited(
        _LEMMA_BODY, _LEMMA_BODY.replace("{\n", "{\n  var h := n / 2;\n  assert h <= n;\n")
    ),
    "a lemma's body that calls itself": edited(
        _LEMMA_BODY, _LEMMA_BODY.replace("{\n", "{\n  if n > 0 { HalfIsSmall(n - 1); }\n")
    ),
    "an assertion about the heap": edited("  forall i |", "  assert a[..] == old(a[..]);\n  forall i |"),
    "an assertion at the start": edited("  var i := 0;", "  assert n >= 0;\n  var i := 0;"),
    "an assertion at the end": edited(f"{STEP}  }}\n", f"{STEP}  }}\n  assert i == n;\n"),
    "an invariant over lines": edited("i <= n && s", "i <= n\n   && s"),
    "two invariants": edited("i <= n && s", "i <= n\n    invariant s"),
    "an invariant over a set": edited("invariant i <= n", "invariant (i in set x | 0 <= x <= n) && i <= n"),
    "old semicolons": SOLUTION.replace("(i + 1) / 2\n", "(i + 1) / 2;\n"),
    "other blanks": SOLUTION.replace("  ", "\t").replace("\n", "\r\n"),
    "empty lines": SOLUTION.replace("\n", "\n\n"),
    "one line": " ".join(SOLUTION.split()),
    "a byte-order mark": f"\ufeff{SOLUTION}",
}
