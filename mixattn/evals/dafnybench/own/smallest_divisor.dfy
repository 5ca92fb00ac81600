method SmallestDivisor(n: nat) returns (d: nat)
  requires n >= 2
  ensures 2 <= d <= n && n % d == 0
  ensures forall k :: 2 <= k < d ==> n % k != 0
{
  d := 2;
  while n % d != 0
    invariant 2 <= d <= n
    invariant forall k :: 2 <= k < d ==> n % k != 0
    decreases n - d
  {
    d := d + 1;
  }
}
