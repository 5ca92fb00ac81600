method Contains(s: seq<int>, x: int) returns (found: bool)
  ensures found <==> x in s
{
  var i := 0;
  while i < |s|
    invariant 0 <= i <= |s|
    invariant x !in s[..i]
  {
    if s[i] == x { return true; }
    i := i + 1;
  }
  return false;
}
