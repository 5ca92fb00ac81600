//// right
// Return whether every element of the array a is greater than zero.
method Solve(a: array<int>) returns (r: bool)
  ensures r <==> forall i :: 0 <= i < a.Length ==> a[i] > 0
{
  var n := 0;
  r := true;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant r <==> forall i :: 0 <= i < n ==> a[i] > 0
  {
    if a[n] <= 0 {
      r := false;
    }
    n := n + 1;
  }
}

//// weak
// Return true only if every element of the array a is greater than zero; false is always allowed.
method Solve(a: array<int>) returns (r: bool)
  ensures r ==> forall i :: 0 <= i < a.Length ==> a[i] > 0
{
  r := false;
}

//// changed
// Return whether no element of the array a is smaller than zero.
method Solve(a: array<int>) returns (r: bool)
  ensures r <==> forall i :: 0 <= i < a.Length ==> a[i] >= 0
{
  var n := 0;
  r := true;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant r <==> forall i :: 0 <= i < n ==> a[i] >= 0
  {
    if a[n] < 0 {
      r := false;
    }
    n := n + 1;
  }
}

//// tests
method Main() {
  var a0 := new int[3][1, 2, 3];
  var r0 := Solve(a0);
  print r0, "\n";
  var a1 := new int[3][1, 0, 3];
  var r1 := Solve(a1);
  print r1, "\n";
  var a2 := new int[0];
  var r2 := Solve(a2);
  print r2, "\n";
  var a3 := new int[1][-1];
  var r3 := Solve(a3);
  print r3, "\n";
  var a4 := new int[1][5];
  var r4 := Solve(a4);
  print r4, "\n";
}
