datatype List = Nil | Cons(head: int, tail: List)

function Append(a: List, b: List): List
{
  match a
  case Nil => b
  case Cons(x, rest) => Cons(x, Append(rest, b))
}

function Length(a: List): nat
{
  match a
  case Nil => 0
  case Cons(x, rest) => 1 + Length(rest)
}

lemma {:induction false} LengthOfAppend(a: List, b: List)
  ensures Length(Append(a, b)) == Length(a) + Length(b)
{
  match a {
    case Nil =>
    case Cons(x, rest) =>
      calc {
        Length(Append(a, b));
        == 1 + Length(Append(rest, b));
        == { LengthOfAppend(rest, b); }
        1 + Length(rest) + Length(b);
      }
  }
}
