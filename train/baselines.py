"""What a table of counts already knows: n-gram entropies, the bars a trained network has to beat.

Interpolated Kneser-Ney smoothing with one absolute discount an order (Kneser and Ney 1995; the interpolated
form and D = n1 / (n1 + 2 n2) as in Chen and Goodman 1999, section 2.7), in float64.
"""

from typing import NamedTuple

import numpy as np

_UNSEEN = 0.5  # added to every continuation count of a single token, so that no token is impossible


class Bars(NamedTuple):
    """Cross entropies of the validation tokens in nats a token, by how many tokens are looked at."""

    unigram: float  # add-one counts
    bigram: float
    trigram: float


def entropies(train_N: np.ndarray, validation_M: np.ndarray, vocab_size: int) -> Bars:
    """Counts on `train_N`, measures on every token of `validation_M` that has two before it.

    Args:
      train_N: token ids, one long stream.
      validation_M: token ids, one long stream of at least three.
      vocab_size: number of token ids, V; V ** 3 must fit 63 bits.

    Raises:
      ValueError: a stream is too short to count or measure anything.
    """
    if len(train_N) < 3 or len(validation_M) < 3:
        raise ValueError(
            f"{len(train_N)} training and {len(validation_M)} validation tokens leave no trigram"
        )
    train, valid = train_N.astype(np.int64), validation_M.astype(np.int64)
    a, b, c = valid[:-2], valid[1:-1], valid[2:]
    counts_V = np.bincount(train, minlength=vocab_size) + 1.0
    pairs = _Table(train[:-1] * vocab_size + train[1:], vocab_size)
    triples = _Table((train[:-2] * vocab_size + train[1:-1]) * vocab_size + train[2:], vocab_size)
    # Lower orders count in how many contexts a token was seen, not how often it was.
    single_V = np.bincount(pairs.keys % vocab_size, minlength=vocab_size) + _UNSEEN
    single_V = single_V / single_V.sum()
    after_any = _Table(triples.keys % vocab_size**2, vocab_size)
    bigram = pairs.interpolate(b, c, single_V[c])
    trigram = triples.interpolate(a * vocab_size + b, c, after_any.interpolate(b, c, single_V[c]))
    return Bars(*(float(-np.log(p).mean()) for p in (counts_V[c] / counts_V.sum(), bigram, trigram)))


class _Table:
    """How often each token followed each context; a key is context * V + token."""

    def __init__(self, seen: np.ndarray, vocab_size: int):
        keys, counts = np.unique(seen, return_counts=True)
        self.keys, self.counts, self.vocab_size = keys, counts, vocab_size
        once, twice = np.sum(counts == 1), np.sum(counts == 2)
        self.discount = once / (once + 2.0 * twice) if once else 0.5
        self.contexts, start = np.unique(keys // vocab_size, return_index=True)
        self.totals = np.add.reduceat(counts, start)
        self.kinds = np.diff(np.append(start, len(keys)))

    def interpolate(self, context: np.ndarray, token: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p(token | context) = (count - D)+ / total + D kinds / total * lower; unseen contexts give lower."""
        count = _find(self.keys, self.counts, context * self.vocab_size + token)
        total = _find(self.contexts, self.totals, context)
        kinds = _find(self.contexts, self.kinds, context)
        seen = np.maximum(total, 1)
        mixed = (np.maximum(count - self.discount, 0.0) + self.discount * kinds * lower) / seen
        return np.where(total > 0, mixed, lower)


def _find(sorted_keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == wanted, values[at], 0)
