method Tally(s: seq<int>) returns (m: map<int, int>)
  ensures forall x :: x in m <==> x in s
  ensures forall x :: x in m ==> m[x] == multiset(s)[x]
{
  m := map[];
  var i := 0;
  while i < |s|
    invariant 0 <= i <= |s|
    invariant forall x :: x in m <==> x in s[..i]
    invariant forall x :: x in m ==> m[x] == multiset(s[..i])[x]
  {
    assert s[..i + 1] == s[..i] + [s[i]];
    assert s[i] !in m ==> multiset(s[..i])[s[i]] == 0;
    m := m[s[i] := (if s[i] in m then m[s[i]] else 0) + 1];
    i := i + 1;
  }
  assert s[..|s|] == s;
}
