method PairWithSum(a: array<int>, target: int) returns (found: bool, i: int, j: int)
  requires forall x, y :: 0 <= x < y < a.Length ==> a[x] <= a[y]
  ensures found ==> 0 <= i < j < a.Length && a[i] + a[j] == target
  ensures !found ==> forall x, y :: 0 <= x < y < a.Length ==> a[x] + a[y] != target
{
  i, j := 0, a.Length - 1;
  while i < j
    invariant 0 <= i && j < a.Length
    invariant forall x, y :: 0 <= x < y < a.Length && (x < i || y > j) ==> a[x] + a[y] != target
    decreases j - i
  {
    if a[i] + a[j] == target { return true, i, j; }
    if a[i] + a[j] < target { i := i + 1; } else { j := j - 1; }
  }
  found := false;
}
