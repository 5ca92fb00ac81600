//// right
// Given n, which is not negative, return the largest whole number whose square is at most n.
method Solve(n: int) returns (r: int)
  requires n >= 0
  ensures r >= 0
  ensures r * r <= n < (r + 1) * (r + 1)
{
  r := 0;
  while (r + 1) * (r + 1) <= n
    invariant r >= 0
    invariant r * r <= n
    decreases n - r
  {
    r := r + 1;
  }
}

//// weak
// Given n, which is not negative, return a whole number that is not negative and whose square is at most n.
method Solve(n: int) returns (r: int)
  requires n >= 0
  ensures r >= 0
  ensures r * r <= n
{
  r := 0;
}

//// changed
// Given n, which is not negative, return the smallest whole number that is not negative and whose square is
// at least n.
method Solve(n: int) returns (r: int)
  requires n >= 0
  ensures r >= 0
  ensures n <= r * r
  ensures r > 0 ==> (r - 1) * (r - 1) < n
{
  r := 0;
  while r * r < n
    invariant r >= 0
    invariant r > 0 ==> (r - 1) * (r - 1) < n
    decreases n - r
  {
    r := r + 1;
  }
}

//// tests
method Main() {
  var r0 := Solve(0);
  print r0, "\n";
  var r1 := Solve(1);
  print r1, "\n";
  var r2 := Solve(2);
  print r2, "\n";
  var r3 := Solve(16);
  print r3, "\n";
  var r4 := Solve(99);
  print r4, "\n";
}
