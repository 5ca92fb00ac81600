method CommonPrefix(a: seq<int>, b: seq<int>) returns (n: nat)
  ensures n <= |a| && n <= |b|
  ensures a[..n] == b[..n]
  ensures n < |a| && n < |b| ==> a[n] != b[n]
{
  n := 0;
  while n < |a| && n < |b| && a[n] == b[n]
    invariant n <= |a| && n <= |b|
    invariant a[..n] == b[..n]
  {
    n := n + 1;
  }
}
