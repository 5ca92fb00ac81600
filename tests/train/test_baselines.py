"""Kneser-Ney baselines against the definition written as dictionaries of counts."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import baselines


class Oracle:
    """The same smoothing from its definition, one probability at a time."""

    def __init__(self, train, vocab_size):
        self.V = vocab_size
        self.c1 = collections.Counter(train)
        self.c2 = collections.Counter(itertools.pairwise(train))
        self.c3 = collections.Counter(zip(train, train[1:], train[2:]))
        self.after2 = collections.Counter((b, c) for _, b, c in self.c3)  # distinct a before (b, c)
        self.after1 = collections.Counter(c for _, c in self.c2)
        self.D2, self.D3, self.D23 = map(self.discount, (self.c2, self.c3, self.after2))

    @staticmethod
    def discount(counts):
        once = sum(n == 1 for n in counts.values())
        twice = sum(n == 2 for n in counts.values())
        return once / (once + 2 * twice) if once else 0.5

    def unigram(self, c):
        return (self.c1[c] + 1) / (sum(self.c1.values()) + self.V)

    def continuation(self, c):
        return (self.after1[c] + 0.5) / (sum(self.after1.values()) + 0.5 * self.V)

    @staticmethod
    def mix(counts, D, context, c, lower):
        inside = {k: n for k, n in counts.items() if k[:-1] == context}
        if not inside:
            return lower
        total = sum(inside.values())
        return max(inside.get((*context, c), 0) - D, 0) / total + D * len(inside) / total * lower

    def bigram(self, b, c):
        return self.mix(self.c2, self.D2, (b,), c, self.continuation(c))

    def trigram(self, a, b, c):
        lower = self.mix(self.after2, self.D23, (b,), c, self.continuation(c))
        return self.mix(self.c3, self.D3, (a, b), c, lower)


streams = st.lists(st.integers(0, 4), min_size=3, max_size=40)


@given(streams, streams)
def test_the_baselines_are_the_entropies_of_the_definition(train, valid):
    oracle, triples = Oracle(train, 6), list(zip(valid, valid[1:], valid[2:]))
    want = [
        -sum(math.log(oracle.unigram(c)) for _, _, c in triples) / len(triples),
        -sum(math.log(oracle.bigram(b, c)) for _, b, c in triples) / len(triples),
        -sum(math.log(oracle.trigram(*t)) for t in triples) / len(triples),
    ]
    np.testing.assert_allclose(baselines.entropies(np.array(train), np.array(valid), 6), want, rtol=1e-12)


@given(streams, st.integers(0, 5), st.integers(0, 5))
def test_every_conditional_distribution_sums_to_one(train, a, b):
    V = 6
    # The entropy of a stream of one trigram is minus the log of one probability.
    entropies = [baselines.entropies(np.array(train), np.array([a, b, c]), V) for c in range(V)]
    for order in range(3):
        assert sum(math.exp(-one[order]) for one in entropies) == pytest.approx(1, abs=1e-9)


def test_a_stream_too_short_for_a_trigram_is_refused():
    with pytest.raises(ValueError, match="2 training and 9 validation tokens"):
        baselines.entropies(np.zeros(2, int), np.zeros(9, int), 4)
