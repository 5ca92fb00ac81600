function Powers(n: nat): nat
{
  if n == 0 then 0 else Powers(n - 1) + Pow(n - 1)
}

function Pow(n: nat): nat
{
  if n == 0 then 1 else 2 * Pow(n - 1)
}

method SumPowers(n: nat) returns (s: nat)
  ensures s == Powers(n)
  ensures s == Pow(n) - 1
{
  s := 0;
  var p, i := 1, 0;
  while i < n
    invariant i <= n
    invariant p == Pow(i) && s == Powers(i)
    invariant s == p - 1
  {
    s := s + p;
    p := 2 * p;
    i := i + 1;
  }
}
