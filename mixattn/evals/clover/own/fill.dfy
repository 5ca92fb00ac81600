//// right
// Set every element of the array a to v.
method Solve(a: array<int>, v: int)
  modifies a
  ensures forall i :: 0 <= i < a.Length ==> a[i] == v
{
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] == v
  {
    a[n] := v;
    n := n + 1;
  }
}

//// weak
// Set the first element of the array a to v, if it has any; the other elements may change.
method Solve(a: array<int>, v: int)
  modifies a
  ensures a.Length > 0 ==> a[0] == v
{
  if a.Length > 0 {
    a[0] := v;
  }
}

//// changed
// Set every element of the array a to the sum of v and its position.
method Solve(a: array<int>, v: int)
  modifies a
  ensures forall i :: 0 <= i < a.Length ==> a[i] == v + i
{
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] == v + i
  {
    a[n] := v + n;
    n := n + 1;
  }
}

//// tests
method Main() {
  var a0 := new int[3][1, 2, 3];
  Solve(a0, 7);
  print a0[..], "\n";
  var a1 := new int[0];
  Solve(a1, 1);
  print a1[..], "\n";
  var a2 := new int[1][4];
  Solve(a2, -4);
  print a2[..], "\n";
  var a3 := new int[2][0, 1];
  Solve(a3, 0);
  print a3[..], "\n";
  var a4 := new int[4][5, 5, 5, 5];
  Solve(a4, 2);
  print a4[..], "\n";
}
