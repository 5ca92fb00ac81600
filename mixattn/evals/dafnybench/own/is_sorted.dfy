method IsSorted(a: array<int>) returns (sorted: bool)
  ensures sorted <==> forall k :: 0 < k < a.Length ==> a[k - 1] <= a[k]
{
  var i := 1;
  while i < a.Length
    invariant 1 <= i
    invariant forall k :: 0 < k < i && k < a.Length ==> a[k - 1] <= a[k]
  {
    if a[i - 1] > a[i] { return false; }
    i := i + 1;
  }
  return true;
}
