method LastOccurrence(a: array<int>, key: int) returns (at: int)
  ensures -1 <= at < a.Length
  ensures at >= 0 ==> a[at] == key
  ensures forall k :: at < k < a.Length ==> a[k] != key
{
  at := a.Length - 1;
  while at >= 0
    invariant -1 <= at < a.Length
    invariant forall k :: at < k < a.Length ==> a[k] != key
  {
    if a[at] == key { return; }
    at := at - 1;
  }
}
