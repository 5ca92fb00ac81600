method Double(s: seq<int>) returns (t: seq<int>)
  ensures |t| == |s|
  ensures forall k :: 0 <= k < |s| ==> t[k] == 2 * s[k]
{
  t := [];
  var i := 0;
  while i < |s|
    invariant 0 <= i <= |s| && |t| == i
    invariant forall k :: 0 <= k < i ==> t[k] == 2 * s[k]
  {
    t := t + [2 * s[i]];
    i := i + 1;
  }
}
