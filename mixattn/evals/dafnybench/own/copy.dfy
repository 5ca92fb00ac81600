method Copy(source: array<int>) returns (target: array<int>)
  ensures fresh(target) && target.Length == source.Length
  ensures forall k :: 0 <= k < source.Length ==> target[k] == source[k]
{
  target := new int[source.Length];
  var i := 0;
  while i < source.Length
    invariant 0 <= i <= source.Length
    invariant forall k :: 0 <= k < i ==> target[k] == source[k]
  {
    target[i] := source[i];
    i := i + 1;
  }
}
