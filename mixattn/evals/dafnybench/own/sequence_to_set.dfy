method ToSet(s: seq<int>) returns (t: set<int>)
  ensures forall x :: x in s <==> x in t
{
  t := {};
  var i := 0;
  while i < |s|
    invariant 0 <= i <= |s|
    invariant forall x :: x in s[..i] <==> x in t
  {
    t := t + {s[i]};
    i := i + 1;
  }
}
