method SelectionSort(a: array<int>)
  modifies a
  ensures forall i, j :: 0 <= i < j < a.Length ==> a[i] <= a[j]
  ensures multiset(a[..]) == old(multiset(a[..]))
{
  var i := 0;
  while i < a.Length
    invariant 0 <= i <= a.Length
    invariant forall x, y :: 0 <= x < i <= y < a.Length ==> a[x] <= a[y]
    invariant forall x, y :: 0 <= x < y < i ==> a[x] <= a[y]
    invariant multiset(a[..]) == old(multiset(a[..]))
  {
    var least, j := i, i + 1;
    while j < a.Length
      invariant i <= least < j <= a.Length
      invariant forall k :: i <= k < j ==> a[least] <= a[k]
    {
      if a[j] < a[least] { least := j; }
      j := j + 1;
    }
    a[i], a[least] := a[least], a[i];
    i := i + 1;
  }
}
