method AddArrays(a: array<int>, b: array<int>) returns (c: array<int>)
  requires a.Length == b.Length
  ensures c.Length == a.Length
  ensures forall k :: 0 <= k < a.Length ==> c[k] == a[k] + b[k]
{
  c := new int[a.Length];
  var i := 0;
  while i < a.Length
    invariant 0 <= i <= a.Length
    invariant forall k :: 0 <= k < i ==> c[k] == a[k] + b[k]
  {
    c[i] := a[i] + b[i];
    i := i + 1;
  }
}
