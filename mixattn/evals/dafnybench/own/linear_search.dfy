method LinearSearch(a: array<int>, key: int) returns (at: int)
  ensures 0 <= at <= a.Length
  ensures at < a.Length ==> a[at] == key
  ensures forall k :: 0 <= k < at ==> a[k] != key
{
  at := 0;
  while at < a.Length
    invariant 0 <= at <= a.Length
    invariant forall k :: 0 <= k < at ==> a[k] != key
  {
    if a[at] == key { return; }
    at := at + 1;
  }
}
