//// right
// Return the first position of key in the array a, or the length of a if key does not occur.
method Solve(a: array<int>, key: int) returns (r: int)
  ensures 0 <= r <= a.Length
  ensures forall i :: 0 <= i < r ==> a[i] != key
  ensures r < a.Length ==> a[r] == key
{
  r := 0;
  while r < a.Length && a[r] != key
    invariant 0 <= r <= a.Length
    invariant forall i :: 0 <= i < r ==> a[i] != key
  {
    r := r + 1;
  }
}

//// weak
// Return any position of key in the array a, or the length of a if key does not occur.
method Solve(a: array<int>, key: int) returns (r: int)
  ensures 0 <= r <= a.Length
  ensures r < a.Length ==> a[r] == key
  ensures r == a.Length ==> forall i :: 0 <= i < a.Length ==> a[i] != key
{
  r := a.Length;
  var n := a.Length;
  while n > 0
    invariant 0 <= n <= a.Length
    invariant r == a.Length
    invariant forall i :: n <= i < a.Length ==> a[i] != key
  {
    n := n - 1;
    if a[n] == key {
      r := n;
      return;
    }
  }
}

//// changed
// Return the first position of key in the array a, or minus one if key does not occur.
method Solve(a: array<int>, key: int) returns (r: int)
  ensures -1 <= r < a.Length
  ensures r >= 0 ==> a[r] == key && forall i :: 0 <= i < r ==> a[i] != key
  ensures r < 0 ==> forall i :: 0 <= i < a.Length ==> a[i] != key
{
  r := 0;
  while r < a.Length
    invariant 0 <= r <= a.Length
    invariant forall i :: 0 <= i < r ==> a[i] != key
  {
    if a[r] == key {
      return;
    }
    r := r + 1;
  }
  r := -1;
}

//// tests
method Main() {
  var a0 := new int[4][4, 7, 7, 9];
  var r0 := Solve(a0, 7);
  print r0, "\n";
  var a1 := new int[4][4, 7, 7, 9];
  var r1 := Solve(a1, 4);
  print r1, "\n";
  var a2 := new int[4][4, 7, 7, 9];
  var r2 := Solve(a2, 5);
  print r2, "\n";
  var a3 := new int[0];
  var r3 := Solve(a3, 1);
  print r3, "\n";
  var a4 := new int[2][3, 3];
  var r4 := Solve(a4, 3);
  print r4, "\n";
}
