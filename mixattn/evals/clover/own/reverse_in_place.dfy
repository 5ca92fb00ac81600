//// right
// Reverse the order of the elements of the array a, in place.
method Solve(a: array<int>)
  modifies a
  ensures forall i :: 0 <= i < a.Length ==> a[i] == old(a[a.Length - 1 - i])
{
  var n := 0;
  while n < a.Length / 2
    invariant 0 <= n <= a.Length / 2
    invariant forall i :: 0 <= i < n ==> a[i] == old(a[a.Length - 1 - i])
    invariant forall i :: a.Length - n <= i < a.Length ==> a[i] == old(a[a.Length - 1 - i])
    invariant forall i :: n <= i < a.Length - n ==> a[i] == old(a[i])
  {
    var kept := a[n];
    a[n] := a[a.Length - 1 - n];
    a[a.Length - 1 - n] := kept;
    n := n + 1;
  }
}

//// weak
// Exchange the first and the last element of the array a, if it has any; the elements between them may change.
method Solve(a: array<int>)
  modifies a
  ensures a.Length > 0 ==> a[0] == old(a[a.Length - 1]) && a[a.Length - 1] == old(a[0])
{
  if a.Length > 0 {
    var kept := a[0];
    a[0] := a[a.Length - 1];
    a[a.Length - 1] := kept;
  }
}

//// changed
// Move every element of the array a one position towards the front, and the first element to the end.
method Solve(a: array<int>)
  modifies a
  ensures forall i :: 0 <= i < a.Length - 1 ==> a[i] == old(a[i + 1])
  ensures a.Length > 0 ==> a[a.Length - 1] == old(a[0])
{
  if a.Length == 0 {
    return;
  }
  var kept := a[0];
  var n := 0;
  while n < a.Length - 1
    invariant 0 <= n <= a.Length - 1
    invariant forall i :: 0 <= i < n ==> a[i] == old(a[i + 1])
    invariant forall i :: n < i < a.Length ==> a[i] == old(a[i])
  {
    a[n] := a[n + 1];
    n := n + 1;
  }
  a[a.Length - 1] := kept;
}

//// tests
method Main() {
  var a0 := new int[4][1, 2, 3, 4];
  Solve(a0);
  print a0[..], "\n";
  var a1 := new int[0];
  Solve(a1);
  print a1[..], "\n";
  var a2 := new int[1][5];
  Solve(a2);
  print a2[..], "\n";
  var a3 := new int[2][6, 7];
  Solve(a3);
  print a3[..], "\n";
  var a4 := new int[5][1, 2, 3, 4, 5];
  Solve(a4);
  print a4[..], "\n";
}
