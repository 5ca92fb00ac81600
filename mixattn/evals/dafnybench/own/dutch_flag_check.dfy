method FirstZero(a: array<int>) returns (at: int)
  requires forall k :: 0 <= k < a.Length ==> a[k] >= 0
  requires forall k :: 0 < k < a.Length ==> a[k - 1] - 1 <= a[k]
  ensures at < 0 ==> forall k :: 0 <= k < a.Length ==> a[k] != 0
  ensures at >= 0 ==> at < a.Length && a[at] == 0
{
  at := 0;
  while at < a.Length
    invariant 0 <= at
    invariant forall k :: 0 <= k < at && k < a.Length ==> a[k] != 0
  {
    if a[at] == 0 { return; }
    at := at + 1;
  }
  at := -1;
}
