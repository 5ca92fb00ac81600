method Multiply(x: nat, y: nat) returns (product: nat)
  ensures product == x * y
{
  product := 0;
  var i := 0;
  while i < y
    invariant i <= y
    invariant product == x * i
  {
    product := product + x;
    i := i + 1;
  }
}
