method NegativesFirst(a: array<int>) returns (border: int)
  modifies a
  ensures 0 <= border <= a.Length
  ensures forall k :: 0 <= k < border ==> a[k] < 0
  ensures forall k :: border <= k < a.Length ==> a[k] >= 0
  ensures multiset(a[..]) == old(multiset(a[..]))
{
  border := 0;
  var i := 0;
  while i < a.Length
    invariant 0 <= border <= i <= a.Length
    invariant forall k :: 0 <= k < border ==> a[k] < 0
    invariant forall k :: border <= k < i ==> a[k] >= 0
    invariant multiset(a[..]) == old(multiset(a[..]))
  {
    if a[i] < 0 {
      a[i], a[border] := a[border], a[i];
      border := border + 1;
    }
    i := i + 1;
  }
}
