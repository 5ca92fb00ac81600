"""The words of Dafny's declarations and attributes that the reader has to know."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODIFIERS = _words(
    "ghost static protected abstract twostate inductive least greatest opaque opened replaceable"
)
CALLABLES = _words("method function predicate lemma constructor iterator colemma comethod copredicate")
CONTAINERS = _words("module class trait")
OTHERS = _words("datatype codatatype newtype type const var import export include")
DECLARATIONS = MODIFIERS | CALLABLES | CONTAINERS | OTHERS
# Attributes that guide the verifier without telling it what to believe, and without changing a specification.
ATTRIBUTES = _words(
    "trigger induction fuel opaque timeLimit timeLimitMultiplier rlimit resource_limit nowarn matchingloop"
    " vcs_split_on_every_assert split_here isolate_assertions split"
)
