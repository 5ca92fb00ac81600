//// right
// Return the distance between a and b, which is never negative.
method Solve(a: int, b: int) returns (r: int)
  ensures a >= b ==> r == a - b
  ensures a < b ==> r == b - a
{
  if a >= b {
    r := a - b;
  } else {
    r := b - a;
  }
}

//// weak
// Return a number that is at least a - b and at least b - a.
method Solve(a: int, b: int) returns (r: int)
  ensures r >= a - b
  ensures r >= b - a
{
  if a >= b {
    r := a - b + 1;
  } else {
    r := b - a + 1;
  }
}

//// changed
// Return how far a lies above b, or zero if a does not lie above b.
method Solve(a: int, b: int) returns (r: int)
  ensures a >= b ==> r == a - b
  ensures a < b ==> r == 0
{
  if a >= b {
    r := a - b;
  } else {
    r := 0;
  }
}

//// tests
method Main() {
  var r0 := Solve(5, 3);
  print r0, "\n";
  var r1 := Solve(3, 5);
  print r1, "\n";
  var r2 := Solve(-2, 4);
  print r2, "\n";
  var r3 := Solve(0, 0);
  print r3, "\n";
  var r4 := Solve(7, -7);
  print r4, "\n";
}
