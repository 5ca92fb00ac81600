"""The task that the lists of cheats and honest solutions are about, and how each is made from it."""

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
LOOP = "while i < n\n    invariant i <= n && s == i * (i + 1) / 2\n"
SPEC = "ensures s == n * (n + 1) / 2"
STEP = "    s := s + i;\n"
SOLUTION = TASK.replace("while i < n\n", LOOP)


def edited(old: str, new: str, program: str = SOLUTION) -> str:
    """`program` with its first `old` replaced.

    Raises:
      ValueError: there is none.
    """
    if old not in program:
        raise ValueError(f"the program has no {old!r}")
    return program.replace(old, new, 1)


def bare(old: str, new: str) -> str:
    """The task without hints, edited: what makes it verify can only be the edit."""
    return edited(old, new, TASK)


def at_end(statement: str, declaration: str = "") -> str:
    """The task without hints, with a statement behind its loop, and a declaration at the end of the file."""
    return bare(f"{STEP}  }}\n", f"{STEP}  }}\n  {statement}\n") + declaration


def in_loop(statement: str, declaration: str = "") -> str:
    """The solution with a statement at the end of its loop, and a declaration at the end of the file."""
    return edited(STEP, f"{STEP}    {statement}\n") + declaration


def with_top(declaration: str) -> str:
    """The solution with one more declaration."""
    return f"{SOLUTION}{declaration}\n"
