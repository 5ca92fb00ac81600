"""N-gram entropies: baselines that a trained model has to beat.

Interpolated Kneser-Ney smoothing with one absolute discount per order (Kneser and Ney 1995; the interpolated
form and D = n1 / (n1 + 2 n2) as in Chen and Goodman 1999, section 2.7), in float64.
"""

from typing import NamedTuple

import numpy as np

_UNSEEN = 0.5  # added to the continuation count of every token, so that no token has probability zero


class Baselines(NamedTuple):
    """Cross entropies of the validation tokens in nats per token, by order of the n-gram model."""

    unigram: float  # add-one smoothing
    bigram: float
    trigram: float


def entropies(train_N: np.ndarray, validation_M: np.ndarray, vocab_size: int) -> Baselines:
    """Counts n-grams of `train_N` and measures them on every token of `validation_M` from the third.

    Args:
      train_N: token ids, one stream.
      validation_M: token ids, one stream of at least three.
      vocab_size: number of token ids, V; V ** 3 must fit 63 bits.

    Raises:
      ValueError: a stream has fewer than three tokens.
    """
    if len(train_N) < 3 or len(validation_M) < 3:
        raise ValueError(
            f"{len(train_N)} training and {len(validation_M)} validation tokens leave no trigram"
        )
    train, valid = train_N.astype(np.int64), validation_M.astype(np.int64)
    a, b, c = valid[:-2], valid[1:-1], valid[2:]
    counts_V = np.bincount(train, minlength=vocab_size) + 1.0
    pairs = _Counts(train[:-1] * vocab_size + train[1:], vocab_size)
    triples = _Counts((train[:-2] * vocab_size + train[1:-1]) * vocab_size + train[2:], vocab_size)
    # Lower orders count the contexts in which a token was seen, not its occurrences.
    single_V = np.bincount(pairs.keys % vocab_size, minlength=vocab_size) + _UNSEEN
    single_V = single_V / single_V.sum()
    after_any = _Counts(triples.keys % vocab_size**2, vocab_size)
    bigram = pairs.interpolate(b, c, single_V[c])
    trigram = triples.interpolate(a * vocab_size + b, c, after_any.interpolate(b, c, single_V[c]))
    return Baselines(*(float(-np.log(p).mean()) for p in (counts_V[c] / counts_V.sum(), bigram, trigram)))


class _Counts:
    """Counts of each token after each context; a key is context * V + token."""

    def __init__(self, seen: np.ndarray, vocab_size: int):
        keys, counts = np.unique(seen, return_counts=True)
        self.keys, self.counts, self.vocab_size = keys, counts, vocab_size
        once, twice = np.sum(counts == 1), np.sum(counts == 2)
        self.discount = once / (once + 2.0 * twice) if once else 0.5
        self.contexts, first = np.unique(keys // vocab_size, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.distinct = np.diff(np.append(first, len(keys)))

    def interpolate(self, context: np.ndarray, token: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """p(token | context) = (count - D)+ / total + D distinct / total * lower; `lower` if unseen."""
        count = _find(self.keys, self.counts, context * self.vocab_size + token)
        total = _find(self.contexts, self.totals, context)
        distinct = _find(self.contexts, self.distinct, context)
        seen = np.maximum(total, 1)
        mixed = (np.maximum(count - self.discount, 0.0) + self.discount * distinct * lower) / seen
        return np.where(total > 0, mixed, lower)


def _find(sorted_keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the value of each wanted key, 0 if absent."""
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return np.where(sorted_keys[at] == wanted, values[at], 0)
