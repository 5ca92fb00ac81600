method MakeAbsolute(a: array<int>)
  modifies a
  ensures forall k :: 0 <= k < a.Length ==> a[k] == (if old(a[k]) < 0 then -old(a[k]) else old(a[k]))
{
  var i := 0;
  while i < a.Length
    invariant 0 <= i <= a.Length
    invariant forall k :: 0 <= k < i ==> a[k] == (if old(a[k]) < 0 then -old(a[k]) else old(a[k]))
    invariant forall k :: i <= k < a.Length ==> a[k] == old(a[k])
  {
    if a[i] < 0 { a[i] := -a[i]; }
    i := i + 1;
  }
}
