method BubbleLargestUp(a: array<int>)
  requires a.Length > 0
  modifies a
  ensures forall k :: 0 <= k < a.Length ==> a[k] <= a[a.Length - 1]
  ensures multiset(a[..]) == old(multiset(a[..]))
{
  var i := 1;
  while i < a.Length
    invariant 1 <= i <= a.Length
    invariant forall k :: 0 <= k < i ==> a[k] <= a[i - 1]
    invariant multiset(a[..]) == old(multiset(a[..]))
  {
    if a[i - 1] > a[i] { a[i - 1], a[i] := a[i], a[i - 1]; }
    i := i + 1;
  }
}
