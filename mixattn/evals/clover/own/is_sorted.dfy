//// right
// Return whether the elements of the array a never decrease from one position to a later one.
method Solve(a: array<int>) returns (r: bool)
  ensures r <==> forall i, j :: 0 <= i < j < a.Length ==> a[i] <= a[j]
{
  var n := 1;
  while n < a.Length
    invariant a.Length > 0 ==> 1 <= n <= a.Length
    invariant forall i, j :: 0 <= i < j < n && j < a.Length ==> a[i] <= a[j]
  {
    if a[n - 1] > a[n] {
      r := false;
      return;
    }
    n := n + 1;
  }
  r := true;
}

//// weak
// Return true only if the elements of the array a never decrease from one position to a later one; false is
// always allowed.
method Solve(a: array<int>) returns (r: bool)
  ensures r ==> forall i, j :: 0 <= i < j < a.Length ==> a[i] <= a[j]
{
  r := a.Length == 0;
}

//// changed
// Return whether the elements of the array a increase strictly from every position to every later one.
method Solve(a: array<int>) returns (r: bool)
  ensures r <==> forall i, j :: 0 <= i < j < a.Length ==> a[i] < a[j]
{
  var n := 1;
  while n < a.Length
    invariant a.Length > 0 ==> 1 <= n <= a.Length
    invariant forall i, j :: 0 <= i < j < n && j < a.Length ==> a[i] < a[j]
  {
    if a[n - 1] >= a[n] {
      r := false;
      return;
    }
    n := n + 1;
  }
  r := true;
}

//// tests
method Main() {
  var a0 := new int[3][1, 2, 3];
  var r0 := Solve(a0);
  print r0, "\n";
  var a1 := new int[3][1, 1, 2];
  var r1 := Solve(a1);
  print r1, "\n";
  var a2 := new int[2][2, 1];
  var r2 := Solve(a2);
  print r2, "\n";
  var a3 := new int[0];
  var r3 := Solve(a3);
  print r3, "\n";
  var a4 := new int[4][1, 3, 2, 4];
  var r4 := Solve(a4);
  print r4, "\n";
}
