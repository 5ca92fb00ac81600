method Reverse(a: array<int>)
  modifies a
  ensures forall k :: 0 <= k < a.Length ==> a[k] == old(a[a.Length - 1 - k])
{
  var left, right := 0, a.Length - 1;
  while left < right
    invariant 0 <= left <= right + 1 && left + right == a.Length - 1
    invariant forall k :: 0 <= k < left || right < k < a.Length ==> a[k] == old(a[a.Length - 1 - k])
    invariant forall k :: left <= k <= right ==> a[k] == old(a[k])
  {
    a[left], a[right] := a[right], a[left];
    left, right := left + 1, right - 1;
  }
}
