function Power(base: int, exponent: nat): int
{
  if exponent == 0 then 1 else base * Power(base, exponent - 1)
}

method ComputePower(base: int, exponent: nat) returns (p: int)
  ensures p == Power(base, exponent)
{
  p := 1;
  var i := 0;
  while i < exponent
    invariant i <= exponent
    invariant p == Power(base, i)
  {
    p := base * p;
    i := i + 1;
  }
}
