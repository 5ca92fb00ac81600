//// right
// Given n, which is not negative and at most the length of the sequence s, return s without its first n elements.
method Solve(s: seq<int>, n: int) returns (r: seq<int>)
  requires 0 <= n <= |s|
  ensures r == s[n..]
{
  r := s[n..];
}

//// weak
// Given n, which is not negative and smaller than the length of the sequence s, return s without its first n
// elements.
method Solve(s: seq<int>, n: int) returns (r: seq<int>)
  requires 0 <= n < |s|
  ensures r == s[n..]
{
  r := s[n..];
  if n == |s| {
    r := s;
  }
}

//// changed
// Given n, which is not negative and at most the length of the sequence s, return the first n elements of s.
method Solve(s: seq<int>, n: int) returns (r: seq<int>)
  requires 0 <= n <= |s|
  ensures r == s[..n]
{
  r := s[..n];
}

//// tests
method Main() {
  var r0 := Solve([1, 2, 3], 1);
  print r0, "\n";
  var r1 := Solve([1, 2, 3], 3);
  print r1, "\n";
  var r2 := Solve([4, 5], 0);
  print r2, "\n";
  var r3 := Solve([6], 1);
  print r3, "\n";
  var r4 := Solve([7, 8, 9, 10], 2);
  print r4, "\n";
}
