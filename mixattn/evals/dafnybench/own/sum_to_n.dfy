function Sum(n: nat): nat
{
  if n == 0 then 0 else n + Sum(n - 1)
}

method Total(n: nat) returns (s: nat)
  ensures s == Sum(n)
{
  var i := 0;
  s := 0;
  while i < n
    invariant i <= n
    invariant s == Sum(i)
  {
    i := i + 1;
    s := s + i;
  }
}
