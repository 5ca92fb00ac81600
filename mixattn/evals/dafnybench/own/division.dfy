method Divide(x: nat, y: nat) returns (quotient: nat, remainder: nat)
  requires y > 0
  ensures x == quotient * y + remainder
  ensures remainder < y
{
  quotient, remainder := 0, x;
  while remainder >= y
    invariant x == quotient * y + remainder
  {
    quotient := quotient + 1;
    remainder := remainder - y;
  }
}
