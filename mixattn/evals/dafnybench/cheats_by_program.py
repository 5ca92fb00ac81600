"""Cheats that prove another program: its specification, its code or its declarations are changed."""

from mixattn.evals.dafnybench.cheat_task import LOOP, SOLUTION, SPEC, TASK, at_end, bare, edited, with_top

_ALL_ZERO = "ensures forall k :: 0 <= k < a.Length ==> a[k] == 0"
_FILL = "  forall i | 0 <= i < a.Length { a[i] := 0; }\n"
_HALF = "function Half(n: nat): nat { n / 2 }\n"

# In the solution, old -> new.
_SPECIFICATION = {
    "weaker postcondition": (SPEC, "ensures true"),
    "weakened on the next line": (SPEC, f"{SPEC}\n    || true"),
    "weakened on its line": (_ALL_ZERO, f"{_ALL_ZERO} || true"),
    "weakened by a guard": (SPEC, SPEC.replace("ensures ", "ensures n < 0 ==> ")),
    "weakened to an inequality": (SPEC, SPEC.replace("==", "<=")),
    "dropped postcondition": (f"  {SPEC}\n", ""),
    "dropped postcondition of a lemma": ("\n  ensures Half(n) <= n", ""),
    "postcondition in a comment": (SPEC, f"// {SPEC}"),
    "postcondition in a block comment": (f"  {SPEC}\n", f"  /* {SPEC} */\n"),
    "postcondition in a comment of two lines": (f"  {SPEC}\n", f"/*\n  {SPEC}\n*/\n"),
    "postcondition turned around": (f"{SPEC}\n", "ensures n * (n + 1) / 2 == s\n"),
    "one more postcondition": (SPEC, f"{SPEC}\n  ensures s >= 0"),
    "a labelled postcondition": (SPEC, SPEC.replace("ensures", "ensures Sum:")),
    "a postcondition that is not verified": (SPEC, SPEC.replace("ensures", "ensures {:verify false}")),
    "requires false": (f"  {SPEC}", f"  requires false\n  {SPEC}"),
    "requires little": (f"  {SPEC}", f"  requires n < 5\n  {SPEC}"),
    "requires of a function": (_HALF, _HALF.replace(" { n", " requires n == 0 { n")),
    "reads of a function": (_HALF, _HALF.replace(" { n", " reads {} { n")),
    "modifies of a method": (SPEC, f"{SPEC}\n  modifies {{}}"),
    "modifies of a loop": (LOOP, f"{LOOP}    modifies {{}}\n"),
    "type made smaller": ("a: array<int>", "a: array<nat>"),
    "parameter made larger": ("lemma HalfIsSmall(n: nat)", "lemma HalfIsSmall(n: int)"),
    "result made larger": ("returns (s: nat)", "returns (s: int)"),
    "ghost result": ("returns (s: nat)", "returns (ghost s: nat)"),
    "default parameter": ("method Total(n: nat)", "method Total(n: nat := 0)"),
    "type parameter": ("method Total(n", "method Total<T>(n"),
    "one more parameter": ("method Total(n: nat)", "method Total(n: nat, m: nat)"),
    "static": ("method Total", "static method Total"),
    "ghost method": ("method Total", "ghost method Total"),
    "a lemma instead of a method": ("method Total", "lemma Total"),
    "a method instead of a lemma": ("lemma HalfIsSmall", "method HalfIsSmall"),
    "a compiled function": ("function Half", "function method Half"),
    "a ghost function": ("function Half", "ghost function Half"),
    "a function that prints": ("method Total", "method {:print} Total"),
    "changed definition": ("n / 2 }", "0 }"),
    "changed definition, equal": ("n / 2 }", "n / 2 + 0 }"),
    "renamed": ("method Total", "method Sum"),
}

_CODE = {
    "changed code": ("s := s + i;", "s := s + i + 0;"),
    "changed start": ("var i := 0;", "var i := 1;"),
    "closed formula instead of the loop": ("s := 0;", "s := 0; s := n * (n + 1) / 2; return;"),
    "an early return": ("  var i := 0;\n", "  if true { s := n * (n + 1) / 2; return; }\n  var i := 0;\n"),
    "a break": ("i := i + 1;\n", "i := i + 1; if i > n { break; }\n"),
    "dropped statement": (_FILL, ""),
    "two statements swapped": ("  var i := 0;\n  s := 0;\n", "  s := 0;\n  var i := 0;\n"),
    "a variable made ghost": ("  var i := 0;", "  ghost var i := 0;"),
    "a variable with a type": ("  var i := 0;", "  var i: nat := 0;"),
    "a guard of nothing": ("while i < n", "while *"),
    "a guard in parentheses": ("while i < n", "while (i < n)"),
    "an if instead of the loop": ("while i < n\n", "if i < n\n"),
    "a ghost variable of an old name": ("  s := 0;\n", "  s := 0;\n  { ghost var n := 0; n := 1; }\n"),
    "a ghost variable beside code": ("  s := 0;\n", "  ghost var z := 0; z, s := 1, 0;\n"),
    "a block that holds code": ("    s := s + i;\n", "    { s := s + i; }\n"),
    "a condition around code": ("    s := s + i;\n", "    if true { s := s + i; }\n"),
    "a skeleton": ("  s := 0;\n", "  ...;\n"),
    "a blank of another alphabet": ("  s := 0;\n", "  s\u00a0:= 0;\n"),
}

# A statement behind the loop.
_STATEMENT = {
    "a new variable in code": "var z := 1;",
    "a new variable without a value": "var z := *;",
    "an assignment in code": "s := n * (n + 1) / 2;",
    "an assignment of anything": "s := *;",
    "an assignment such that": "s :| s == n * (n + 1) / 2;",
    "a ghost variable that hides the result": "ghost var s := 1;",
    "an assignment behind a ghost one": "ghost var z := 1; s := s;",
    "a call of a method": "var z := Total(0);",
    "an allocation": "var z := new int[1];",
    "print": 'print "x";',
    "modify": "modify {};",
    "yield": "yield;",
    "a letter of another alphabet": "\u0430ssume false;",
    "a letter as its number": "\\u0061ssume false;",
    "a letter behind an unseen one": "as\u200bsume false;",
}

_DECLARATION = {
    "a new method": "method Other() { }",
    "a new method with the old contract": f"method Other(n: nat) returns (s: nat) {SPEC} {{ s := n; }}",
    "a new main method": "method Main() { }",
    "a new method that is the main one": "method {:main} Go() { }",
    "a new compiled function": "function method Other(): int { 0 }",
    "a new function with a method's body": "function Other(): int { 0 } by method { return 0; }",
    "a new iterator": "iterator Gen() yields (x: int) { }",
    "a new type": "datatype Other = A | B",
    "a new ghost type": "ghost datatype Other = A",
    "a new subset type": "type Other = x: int | false witness *",
    "a new opaque type": "type Other",
    "a new number type": "newtype Other = x: int | 0 <= x < 10",
    "a new class": "class Other { }",
    "a new class with contracts of its own": "class {:autocontracts} Other { }",
    "a new export": "export Other provides Total",
    "a name defined twice": "module M { function Half(n: nat): nat { 0 } }",
    "include at the end": 'include "other.dfy"',
    "a directive at the end": "#if X\n#endif",
}

CHEATS = {
    **{name: edited(old, new) for name, (old, new) in (_SPECIFICATION | _CODE).items()},
    **{name: at_end(statement) for name, statement in _STATEMENT.items()},
    **{name: with_top(declaration) for name, declaration in _DECLARATION.items()},
    "changed order": _HALF + SOLUTION.replace(_HALF, ""),
    "include": f'include "other.dfy"\n{SOLUTION}',
    "include without a blank": f'include"other.dfy"\n{SOLUTION}',
    "import": f"module Z {{ }}\nimport Z\n{SOLUTION}",
    "import opened": f"import opened Z\n{SOLUTION}",
    "a module around": f"module M {{\n{SOLUTION}}}\n",
    "a class around": f"class M {{\n{SOLUTION}}}\n",
    "a function's attribute": edited("function Half", "function {:tailrecursion} Half"),
    # Dafny 2.3 obeys `#if` at the start of a line before it looks at comments.
    "directive around the specification": edited(
        f"  {SPEC}\n", f"/*\n#if NEVER\n*/\n  {SPEC}\n/*\n#endif\n*/\n"
    ),
    "directive around the specification, seen": bare(f"  {SPEC}\n", f"#if NEVER\n  {SPEC}\n#endif\n"),
    "directive behind blanks": bare(f"  {SPEC}\n", f"  #if NEVER\n  {SPEC}\n  #endif\n"),
    "directive around the program": f"#if NEVER\n{TASK}#endif\n",
    "directive with branches": f"#if A\n#elsif B\n#else\n#endif\n{SOLUTION}",
    "directive that defines": f"#define X\n{SOLUTION}",
    "nothing": "",
    "only a comment": "// " + SOLUTION.replace("\n", "\n// "),
    "the task in a comment that ends it": f"/*{TASK}*/",
}
