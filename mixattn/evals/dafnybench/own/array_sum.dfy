function SumUpTo(a: array<int>, n: nat): int
  requires n <= a.Length
  reads a
{
  if n == 0 then 0 else SumUpTo(a, n - 1) + a[n - 1]
}

method ArraySum(a: array<int>) returns (total: int)
  ensures total == SumUpTo(a, a.Length)
{
  total := 0;
  var i := 0;
  while i < a.Length
    invariant 0 <= i <= a.Length
    invariant total == SumUpTo(a, i)
  {
    total := total + a[i];
    i := i + 1;
  }
}
