//// right
// Divide a, which is not negative, by b, which is positive: return the whole quotient q and the remainder r,
// which is not negative and smaller than b.
method Solve(a: int, b: int) returns (q: int, r: int)
  requires a >= 0 && b > 0
  ensures a == q * b + r
  ensures 0 <= r < b
{
  q := 0;
  r := a;
  while r >= b
    invariant a == q * b + r
    invariant r >= 0
  {
    q := q + 1;
    r := r - b;
  }
}

//// weak
// Given a, which is not negative, and b, which is positive, return q and r such that a is q times b plus r,
// and r is not negative.
method Solve(a: int, b: int) returns (q: int, r: int)
  requires a >= 0 && b > 0
  ensures a == q * b + r
  ensures 0 <= r
{
  q := 0;
  r := a;
}

//// changed
// Divide a, which is not negative, by b, which is positive, and round up: return the quotient q and the
// excess r of q times b over a, which is not negative and smaller than b.
method Solve(a: int, b: int) returns (q: int, r: int)
  requires a >= 0 && b > 0
  ensures a == q * b - r
  ensures 0 <= r < b
{
  q := 0;
  r := -a;
  while r < 0
    invariant a == q * b - r
    invariant r < b
  {
    q := q + 1;
    r := r + b;
  }
}

//// tests
method Main() {
  var q0, r0 := Solve(17, 5);
  print q0, " ", r0, "\n";
  var q1, r1 := Solve(20, 5);
  print q1, " ", r1, "\n";
  var q2, r2 := Solve(0, 3);
  print q2, " ", r2, "\n";
  var q3, r3 := Solve(4, 9);
  print q3, " ", r3, "\n";
  var q4, r4 := Solve(100, 7);
  print q4, " ", r4, "\n";
}
