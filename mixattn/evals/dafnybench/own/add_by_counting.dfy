method Add(x: int, y: nat) returns (sum: int)
  ensures sum == x + y
{
  sum := x;
  var left := y;
  while left > 0
    invariant 0 <= left <= y
    invariant sum + left == x + y
  {
    sum := sum + 1;
    left := left - 1;
  }
}
