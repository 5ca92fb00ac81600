function Fib(n: nat): nat
{
  if n < 2 then n else Fib(n - 1) + Fib(n - 2)
}

method ComputeFib(n: nat) returns (f: nat)
  ensures f == Fib(n)
{
  f := 0;
  var next, i := 1, 0;
  while i < n
    invariant i <= n
    invariant f == Fib(i) && next == Fib(i + 1)
  {
    f, next := next, f + next;
    i := i + 1;
  }
}
