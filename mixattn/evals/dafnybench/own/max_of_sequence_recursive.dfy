function Max(s: seq<int>): int
  requires |s| > 0
{
  if |s| == 1 then s[0]
  else
    var rest := Max(s[..|s| - 1]);
    if s[|s| - 1] > rest then s[|s| - 1] else rest
}

method ComputeMax(s: seq<int>) returns (m: int)
  requires |s| > 0
  ensures m == Max(s)
{
  m := s[0];
  var i := 1;
  assert s[..1] == [s[0]];
  while i < |s|
    invariant 1 <= i <= |s|
    invariant m == Max(s[..i])
  {
    assert s[..i + 1][..i] == s[..i];
    if s[i] > m { m := s[i]; }
    i := i + 1;
  }
  assert s[..|s|] == s;
}
