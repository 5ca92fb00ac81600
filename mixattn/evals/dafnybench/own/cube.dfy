method Cube(n: nat) returns (c: nat)
  ensures c == n * n * n
{
  c := 0;
  var i, step, odd := 0, 1, 6;
  while i < n
    invariant i <= n
    invariant odd == 6 * i + 6
    invariant step == 3 * i * i + 3 * i + 1
    invariant c == i * i * i
  {
    c := c + step;
    step := step + odd;
    odd := odd + 6;
    i := i + 1;
  }
}
