//// right
// Return the largest of a, b and c.
method Solve(a: int, b: int, c: int) returns (r: int)
  ensures r >= a && r >= b && r >= c
  ensures r == a || r == b || r == c
{
  r := a;
  if b > r {
    r := b;
  }
  if c > r {
    r := c;
  }
}

//// weak
// Return a number that none of a, b and c exceeds.
method Solve(a: int, b: int, c: int) returns (r: int)
  ensures r >= a && r >= b && r >= c
{
  r := a;
  if b > r {
    r := b;
  }
  if c > r {
    r := c;
  }
  r := r + 1;
}

//// changed
// Return the smallest of a, b and c.
method Solve(a: int, b: int, c: int) returns (r: int)
  ensures r <= a && r <= b && r <= c
  ensures r == a || r == b || r == c
{
  r := a;
  if b < r {
    r := b;
  }
  if c < r {
    r := c;
  }
}

//// tests
method Main() {
  var r0 := Solve(1, 2, 3);
  print r0, "\n";
  var r1 := Solve(3, 2, 1);
  print r1, "\n";
  var r2 := Solve(2, 9, 2);
  print r2, "\n";
  var r3 := Solve(-1, -5, -3);
  print r3, "\n";
  var r4 := Solve(4, 4, 4);
  print r4, "\n";
}
