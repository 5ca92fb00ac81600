//// right
// Exchange the elements at the positions i and j of the array a, which are inside the array; all other elements
// stay as they were.
method Solve(a: array<int>, i: int, j: int)
  requires 0 <= i < a.Length && 0 <= j < a.Length
  modifies a
  ensures a[i] == old(a[j]) && a[j] == old(a[i])
  ensures forall k :: 0 <= k < a.Length && k != i && k != j ==> a[k] == old(a[k])
{
  var kept := a[i];
  a[i] := a[j];
  a[j] := kept;
}

//// weak
// Exchange the elements at the positions i and j of the array a, which are inside the array; all other elements
// may change.
method Solve(a: array<int>, i: int, j: int)
  requires 0 <= i < a.Length && 0 <= j < a.Length
  modifies a
  ensures a[i] == old(a[j]) && a[j] == old(a[i])
{
  var kept := a[i];
  a[i] := a[j];
  a[j] := kept;
  if i != 0 && j != 0 {
    a[0] := 0;
  }
}

//// changed
// Copy the element at position j of the array a to position i, both inside the array; all other elements stay
// as they were.
method Solve(a: array<int>, i: int, j: int)
  requires 0 <= i < a.Length && 0 <= j < a.Length
  modifies a
  ensures a[i] == old(a[j])
  ensures forall k :: 0 <= k < a.Length && k != i ==> a[k] == old(a[k])
{
  a[i] := a[j];
}

//// tests
method Main() {
  var a0 := new int[3][1, 2, 3];
  Solve(a0, 0, 2);
  print a0[..], "\n";
  var a1 := new int[4][1, 2, 3, 4];
  Solve(a1, 1, 2);
  print a1[..], "\n";
  var a2 := new int[1][5];
  Solve(a2, 0, 0);
  print a2[..], "\n";
  var a3 := new int[2][6, 7];
  Solve(a3, 1, 0);
  print a3[..], "\n";
  var a4 := new int[3][9, 8, 7];
  Solve(a4, 2, 1);
  print a4[..], "\n";
}
