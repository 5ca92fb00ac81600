method MinIndex(a: array<int>) returns (at: int)
  requires a.Length > 0
  ensures 0 <= at < a.Length
  ensures forall k :: 0 <= k < a.Length ==> a[at] <= a[k]
{
  at := 0;
  var i := 1;
  while i < a.Length
    invariant 1 <= i <= a.Length && 0 <= at < i
    invariant forall k :: 0 <= k < i ==> a[at] <= a[k]
  {
    if a[i] < a[at] { at := i; }
    i := i + 1;
  }
}
