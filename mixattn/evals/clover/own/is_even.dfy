//// right
// Return whether n is divisible by two.
method Solve(n: int) returns (r: bool)
  ensures r <==> n % 2 == 0
{
  r := n % 2 == 0;
}

//// weak
// Return true only if n is divisible by two; false is always allowed.
method Solve(n: int) returns (r: bool)
  ensures r ==> n % 2 == 0
{
  r := n == 0;
}

//// changed
// Return whether n is not divisible by two.
method Solve(n: int) returns (r: bool)
  ensures r <==> n % 2 != 0
{
  r := n % 2 != 0;
}

//// tests
method Main() {
  var r0 := Solve(0);
  print r0, "\n";
  var r1 := Solve(1);
  print r1, "\n";
  var r2 := Solve(2);
  print r2, "\n";
  var r3 := Solve(-3);
  print r3, "\n";
  var r4 := Solve(10);
  print r4, "\n";
}
