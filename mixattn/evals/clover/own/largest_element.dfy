//// right
// Given an array a that is not empty, return its largest element.
method Solve(a: array<int>) returns (r: int)
  requires a.Length > 0
  ensures forall i :: 0 <= i < a.Length ==> a[i] <= r
  ensures exists i :: 0 <= i < a.Length && a[i] == r
{
  r := a[0];
  var n := 1;
  while n < a.Length
    invariant 1 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] <= r
    invariant exists i :: 0 <= i < n && a[i] == r
  {
    if a[n] > r {
      r := a[n];
    }
    n := n + 1;
  }
}

//// weak
// Given an array a that is not empty, return a number that no element of a exceeds.
method Solve(a: array<int>) returns (r: int)
  requires a.Length > 0
  ensures forall i :: 0 <= i < a.Length ==> a[i] <= r
{
  r := a[0];
  var n := 1;
  while n < a.Length
    invariant 1 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] <= r
  {
    if a[n] > r {
      r := a[n];
    }
    n := n + 1;
  }
  r := r + 1;
}

//// changed
// Given an array a that is not empty, return its smallest element.
method Solve(a: array<int>) returns (r: int)
  requires a.Length > 0
  ensures forall i :: 0 <= i < a.Length ==> r <= a[i]
  ensures exists i :: 0 <= i < a.Length && a[i] == r
{
  r := a[0];
  var n := 1;
  while n < a.Length
    invariant 1 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> r <= a[i]
    invariant exists i :: 0 <= i < n && a[i] == r
  {
    if a[n] < r {
      r := a[n];
    }
    n := n + 1;
  }
}

//// tests
method Main() {
  var a0 := new int[3][1, 5, 3];
  var r0 := Solve(a0);
  print r0, "\n";
  var a1 := new int[3][-4, -2, -9];
  var r1 := Solve(a1);
  print r1, "\n";
  var a2 := new int[1][6];
  var r2 := Solve(a2);
  print r2, "\n";
  var a3 := new int[2][2, 2];
  var r3 := Solve(a3);
  print r3, "\n";
  var a4 := new int[3][9, 0, 1];
  var r4 := Solve(a4);
  print r4, "\n";
}
