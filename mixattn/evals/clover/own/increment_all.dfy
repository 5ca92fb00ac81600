//// right
// Add one to every element of the array a.
method Solve(a: array<int>)
  modifies a
  ensures forall i :: 0 <= i < a.Length ==> a[i] == old(a[i]) + 1
{
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] == old(a[i]) + 1
    invariant forall i :: n <= i < a.Length ==> a[i] == old(a[i])
  {
    a[n] := a[n] + 1;
    n := n + 1;
  }
}

//// weak
// Make every element of the array a larger than it was.
method Solve(a: array<int>)
  modifies a
  ensures forall i :: 0 <= i < a.Length ==> a[i] > old(a[i])
{
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] == old(a[i]) + 2
    invariant forall i :: n <= i < a.Length ==> a[i] == old(a[i])
  {
    a[n] := a[n] + 2;
    n := n + 1;
  }
}

//// changed
// Subtract one from every element of the array a.
method Solve(a: array<int>)
  modifies a
  ensures forall i :: 0 <= i < a.Length ==> a[i] == old(a[i]) - 1
{
  var n := 0;
  while n < a.Length
    invariant 0 <= n <= a.Length
    invariant forall i :: 0 <= i < n ==> a[i] == old(a[i]) - 1
    invariant forall i :: n <= i < a.Length ==> a[i] == old(a[i])
  {
    a[n] := a[n] - 1;
    n := n + 1;
  }
}

//// tests
method Main() {
  var a0 := new int[3][1, 2, 3];
  Solve(a0);
  print a0[..], "\n";
  var a1 := new int[0];
  Solve(a1);
  print a1[..], "\n";
  var a2 := new int[1][-1];
  Solve(a2);
  print a2[..], "\n";
  var a3 := new int[2][0, 0];
  Solve(a3);
  print a3[..], "\n";
  var a4 := new int[2][9, -9];
  Solve(a4);
  print a4[..], "\n";
}
