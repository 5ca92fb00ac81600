function Pow2(n: nat): nat
{
  if n == 0 then 1 else 2 * Pow2(n - 1)
}

method ComputePow2(n: nat) returns (p: nat)
  ensures p == Pow2(n)
{
  var left := n;
  p := 1;
  while left > 0
    invariant 0 <= left <= n
    invariant p == Pow2(n - left)
  {
    p := 2 * p;
    left := left - 1;
  }
}
