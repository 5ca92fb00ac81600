//// right
// Return whether x occurs in the sequence s.
method Solve(s: seq<int>, x: int) returns (r: bool)
  ensures r <==> x in s
{
  r := false;
  var n := 0;
  while n < |s|
    invariant 0 <= n <= |s|
    invariant r <==> x in s[..n]
  {
    if s[n] == x {
      r := true;
    }
    n := n + 1;
  }
}

//// weak
// Return true whenever x occurs in the sequence s; true is always allowed.
method Solve(s: seq<int>, x: int) returns (r: bool)
  ensures x in s ==> r
{
  r := true;
}

//// changed
// Return whether x is missing from the sequence s.
method Solve(s: seq<int>, x: int) returns (r: bool)
  ensures r <==> x !in s
{
  r := true;
  var n := 0;
  while n < |s|
    invariant 0 <= n <= |s|
    invariant r <==> x !in s[..n]
  {
    if s[n] == x {
      r := false;
    }
    n := n + 1;
  }
}

//// tests
method Main() {
  var r0 := Solve([1, 2, 3], 2);
  print r0, "\n";
  var r1 := Solve([1, 2, 3], 4);
  print r1, "\n";
  var r2 := Solve([], 0);
  print r2, "\n";
  var r3 := Solve([7], 7);
  print r3, "\n";
  var r4 := Solve([5, 5], 6);
  print r4, "\n";
}
