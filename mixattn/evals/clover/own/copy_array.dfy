//// right
// Return an array of the same length as a with the same elements at the same positions.
method Solve(a: array<int>) returns (r: array<int>)
  ensures r.Length == a.Length
  ensures forall i :: 0 <= i < a.Length ==> r[i] == a[i]
{
  r := new int[a.Length];
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> r[i] == a[i]
  {
    r[n] := a[n];
    n := n + 1;
  }
}

//// weak
// Return an array of the same length as a.
method Solve(a: array<int>) returns (r: array<int>)
  ensures r.Length == a.Length
{
  r := new int[a.Length];
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
  {
    r[n] := 0;
    n := n + 1;
  }
}

//// changed
// Return an array of the same length as a with the elements of a in reverse order.
method Solve(a: array<int>) returns (r: array<int>)
  ensures r.Length == a.Length
  ensures forall i :: 0 <= i < a.Length ==> r[i] == a[a.Length - 1 - i]
{
  r := new int[a.Length];
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> r[i] == a[a.Length - 1 - i]
  {
    r[n] := a[a.Length - 1 - n];
    n := n + 1;
  }
}

//// tests
method Main() {
  var a0 := new int[3][1, 2, 3];
  var r0 := Solve(a0);
  print r0[..], "\n";
  var a1 := new int[0];
  var r1 := Solve(a1);
  print r1[..], "\n";
  var a2 := new int[1][8];
  var r2 := Solve(a2);
  print r2[..], "\n";
  var a3 := new int[2][0, 5];
  var r3 := Solve(a3);
  print r3[..], "\n";
  var a4 := new int[4][3, 1, 4, 1];
  var r4 := Solve(a4);
  print r4[..], "\n";
}
