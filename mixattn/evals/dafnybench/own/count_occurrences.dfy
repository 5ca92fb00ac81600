function Count(s: seq<int>, x: int): nat
{
  if |s| == 0 then 0 else Count(s[..|s| - 1], x) + (if s[|s| - 1] == x then 1 else 0)
}

method ComputeCount(s: seq<int>, x: int) returns (n: nat)
  ensures n == Count(s, x)
{
  n := 0;
  var i := 0;
  while i < |s|
    invariant 0 <= i <= |s|
    invariant n == Count(s[..i], x)
  {
    assert s[..i + 1][..i] == s[..i];
    if s[i] == x { n := n + 1; }
    i := i + 1;
  }
  assert s[..|s|] == s;
}
