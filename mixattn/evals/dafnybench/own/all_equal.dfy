method AllEqual(a: array<int>) returns (same: bool)
  ensures same <==> forall i, j :: 0 <= i < j < a.Length ==> a[i] == a[j]
{
  if a.Length == 0 { return true; }
  var i := 1;
  while i < a.Length
    invariant 1 <= i <= a.Length
    invariant forall k :: 0 <= k < i ==> a[k] == a[0]
  {
    if a[i] != a[0] {
      assert 0 < i && a[0] != a[i];
      return false;
    }
    i := i + 1;
  }
  return true;
}
