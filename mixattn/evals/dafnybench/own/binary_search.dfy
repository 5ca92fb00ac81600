predicate Sorted(a: array<int>)
  reads a
{
  forall i, j :: 0 <= i < j < a.Length ==> a[i] <= a[j]
}

method BinarySearch(a: array<int>, key: int) returns (at: int)
  requires Sorted(a)
  ensures at >= 0 ==> at < a.Length && a[at] == key
  ensures at < 0 ==> forall k :: 0 <= k < a.Length ==> a[k] != key
{
  var low, high := 0, a.Length;
  while low < high
    invariant 0 <= low <= high <= a.Length
    invariant forall k :: 0 <= k < low ==> a[k] < key
    invariant forall k :: high <= k < a.Length ==> a[k] > key
    decreases high - low
  {
    var middle := (low + high) / 2;
    if a[middle] < key {
      low := middle + 1;
    } else if a[middle] > key {
      high := middle;
    } else {
      return middle;
    }
  }
  return -1;
}
