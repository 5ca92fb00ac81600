//// right
// Given an array a that is not empty, return the first position of its smallest element.
method Solve(a: array<int>) returns (r: int)
  requires a.Length > 0
  ensures 0 <= r < a.Length
  ensures forall i :: 0 <= i < a.Length ==> a[r] <= a[i]
  ensures forall i :: 0 <= i < r ==> a[r] < a[i]
{
  r := 0;
  var n := 1;
  while n < a.Length
    invariant 1 <= n <= a.Length
    invariant 0 <= r < n
    invariant forall i :: 0 <= i < n ==> a[r] <= a[i]
    invariant forall i :: 0 <= i < r ==> a[r] < a[i]
  {
    if a[n] < a[r] {
      r := n;
    }
    n := n + 1;
  }
}

//// weak
// Given an array a that is not empty, return any position of its smallest element.
method Solve(a: array<int>) returns (r: int)
  requires a.Length > 0
  ensures 0 <= r < a.Length
  ensures forall i :: 0 <= i < a.Length ==> a[r] <= a[i]
{
  r := 0;
  var n := 1;
  while n < a.Length
    invariant 1 <= n <= a.Length
    invariant 0 <= r < n
    invariant forall i :: 0 <= i < n ==> a[r] <= a[i]
  {
    if a[n] <= a[r] {
      r := n;
    }
    n := n + 1;
  }
}

//// changed
// Given an array a that is not empty, return the first position of its largest element.
method Solve(a: array<int>) returns (r: int)
  requires a.Length > 0
  ensures 0 <= r < a.Length
  ensures forall i :: 0 <= i < a.Length ==> a[i] <= a[r]
  ensures forall i :: 0 <= i < r ==> a[i] < a[r]
{
  r := 0;
  var n := 1;
  while n < a.Length
    invariant 1 <= n <= a.Length
    invariant 0 <= r < n
    invariant forall i :: 0 <= i < n ==> a[i] <= a[r]
    invariant forall i :: 0 <= i < r ==> a[i] < a[r]
  {
    if a[n] > a[r] {
      r := n;
    }
    n := n + 1;
  }
}

//// tests
method Main() {
  var a0 := new int[3][3, 1, 2];
  var r0 := Solve(a0);
  print r0, "\n";
  var a1 := new int[3][1, 1, 5];
  var r1 := Solve(a1);
  print r1, "\n";
  var a2 := new int[3][4, 2, 2];
  var r2 := Solve(a2);
  print r2, "\n";
  var a3 := new int[1][6];
  var r3 := Solve(a3);
  print r3, "\n";
  var a4 := new int[4][5, 0, 9, 0];
  var r4 := Solve(a4);
  print r4, "\n";
}
