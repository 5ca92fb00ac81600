//// right
// Given n, which is not negative, return the sum of all whole numbers from 1 to n.
method Solve(n: int) returns (r: int)
  requires n >= 0
  ensures 2 * r == n * (n + 1)
{
  r := 0;
  var i := 0;
  while i < n
    invariant 0 <= i <= n
    invariant 2 * r == i * (i + 1)
    invariant r >= i
  {
    i := i + 1;
    r := r + i;
  }
}

//// weak
// Given n, which is not negative, return a number that is at least n.
method Solve(n: int) returns (r: int)
  requires n >= 0
  ensures r >= n
{
  r := n;
}

//// changed
// Given n, which is not negative, return the sum of all whole numbers from 1 up to but not including n.
method Solve(n: int) returns (r: int)
  requires n >= 0
  ensures 2 * r == n * (n - 1)
{
  r := 0;
  var i := 0;
  while i < n
    invariant 0 <= i <= n
    invariant 2 * r == i * (i - 1)
  {
    r := r + i;
    i := i + 1;
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
  var r3 := Solve(5);
  print r3, "\n";
  var r4 := Solve(100);
  print r4, "\n";
}
