//// right
// Given low, which is at most high, return x if it lies between them, both included; otherwise return the
// bound that is nearer to x.
method Solve(x: int, low: int, high: int) returns (r: int)
  requires low <= high
  ensures x < low ==> r == low
  ensures x > high ==> r == high
  ensures low <= x <= high ==> r == x
{
  if x < low {
    r := low;
  } else if x > high {
    r := high;
  } else {
    r := x;
  }
}

//// weak
// Given low, which is at most high, return a number between them, both included.
method Solve(x: int, low: int, high: int) returns (r: int)
  requires low <= high
  ensures low <= r <= high
{
  r := low;
}

//// changed
// Given low, which is at most high, return x if it lies between them, both included; otherwise return low.
method Solve(x: int, low: int, high: int) returns (r: int)
  requires low <= high
  ensures low <= x <= high ==> r == x
  ensures x < low || x > high ==> r == low
{
  if low <= x && x <= high {
    r := x;
  } else {
    r := low;
  }
}

//// tests
method Main() {
  var r0 := Solve(5, 1, 9);
  print r0, "\n";
  var r1 := Solve(0, 1, 9);
  print r1, "\n";
  var r2 := Solve(12, 1, 9);
  print r2, "\n";
  var r3 := Solve(9, 1, 9);
  print r3, "\n";
  var r4 := Solve(3, 4, 4);
  print r4, "\n";
}
