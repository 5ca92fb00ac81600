method Square(n: nat) returns (square: nat)
  ensures square == n * n
{
  square := 0;
  var i, odd := 0, 1;
  while i < n
    invariant i <= n
    invariant odd == 2 * i + 1
    invariant square == i * i
  {
    square := square + odd;
    odd := odd + 2;
    i := i + 1;
  }
}
