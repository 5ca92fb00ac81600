method Evens(s: seq<int>) returns (t: seq<int>)
  ensures forall k :: 0 <= k < |t| ==> t[k] % 2 == 0
  ensures forall x :: x in s && x % 2 == 0 ==> x in t
  ensures |t| <= |s|
{
  t := [];
  var i := 0;
  while i < |s|
    invariant 0 <= i <= |s| && |t| <= i
    invariant forall k :: 0 <= k < |t| ==> t[k] % 2 == 0
    invariant forall x :: x in s[..i] && x % 2 == 0 ==> x in t
  {
    if s[i] % 2 == 0 { t := t + [s[i]]; }
    i := i + 1;
  }
}
