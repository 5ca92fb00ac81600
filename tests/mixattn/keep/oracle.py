"""Eviction stepped in float64 for one request: dictionaries, loops and the definitions.

Axes: L layers that read one cache (the first owns it), T tokens, N query heads, K key/value heads, H head
  size.
"""

import numpy as np


class Stepped:
    """The surviving keys of each key/value head of one shared cache.

    Attributes:
      kept: for each head, position -> [key, value, score].
    """

    def __init__(self, keep, q_LTNH, k_TKH, v_TKH, total, *, broken=None):
        self.keep, self.total, self.broken = keep, total, broken
        self.heavy, self.recent, self.sinks = keep.split(total)
        T, K, _ = k_TKH.shape
        votes_KT = np.zeros((K, T))
        reads = {"snapkv": keep.window, "tova": 1, "h2o": T, "h2o_mean": T}.get(keep.scorer, 0)
        layers = q_LTNH if keep.scope == "all_consumers" else q_LTNH[:1]
        for q_TNH in layers:
            for t in range(max(0, T - reads), T):
                for n, head in self._heads(q_TNH[t], K):
                    votes_KT[head, : t + 1] += _softmax(q_TNH[t, n], k_TKH[: t + 1, head])
        if keep.scorer == "snapkv":
            votes_KT[:, T - keep.window :] = 0
            votes_KT = np.stack([_pooled(row, keep.pool) for row in votes_KT])
        if keep.scorer == "tova":
            votes_KT[:] = votes_KT.mean(axis=0)
        self.kept = [
            {t: [k_TKH[t, head], v_TKH[t, head], votes_KT[head, t]] for t in range(T)} for head in range(K)
        ]
        for head in self.kept:
            past = [p for p in head if self.sinks <= p < T - self.recent]
            past.sort(key=lambda p: (-self._worth(head, p), p))
            gone = past[self.heavy :] if total < T else []
            for position in gone:
                del head[position]

    def step(self, q_LNH, k_KH, v_KH, position):
        """Outputs out_LNH of the layers for one new token, and then the eviction."""
        K = len(self.kept)
        for head in range(K):
            self.kept[head][position] = [k_KH[head], v_KH[head], 0.0]
        if self.broken == "evict first":
            self._evict()
        out_LNH, gains = np.zeros(q_LNH.shape), [dict.fromkeys(head, 0.0) for head in self.kept]
        for layer, q_NH in enumerate(q_LNH):
            for n, head in self._heads(q_NH, K):
                keys, values = (np.array([entry[i] for entry in self.kept[head].values()]) for i in (0, 1))
                weights = _softmax(q_NH[n], keys)
                out_LNH[layer, n] = weights @ values
                if self.keep.scope == "all_consumers" or layer == 0:
                    for key, weight in zip(self.kept[head], weights, strict=True):
                        gains[head][key] += weight
        if self.keep.scorer == "tova":
            means = {key: np.mean([gain[key] for gain in gains]) for key in gains[0]}
            gains = [means] * K
        for head, gain in zip(self.kept, gains, strict=True):
            for key, entry in head.items():
                if self.keep.scorer in ("h2o", "h2o_mean"):
                    entry[2] += gain[key]
                elif self.keep.scorer == "tova":
                    entry[2] = gain[key]
        self._evict()
        return out_LNH

    def _evict(self):
        if self.keep.when == "decode":
            for head in self.kept:
                if len(head) > self.total:
                    del head[self._victim(head)]

    def _victim(self, head):
        now = max(head)
        candidates = [p for p in head if self.sinks <= p <= now - self.recent]
        if self.keep.promotion == "always" and len(candidates) > 1:
            candidates.remove(now - self.recent)
        tie = -1 if self.broken == "ties" else 1
        worth = {p: self._worth(head, p) for p in candidates}
        return min(candidates, key=lambda p: (worth[p], -tie * p))

    def _worth(self, head, position):
        key, _, score = head[position]
        match self.keep.scorer:
            case "h2o" | "snapkv" | "tova":
                return score
            case "h2o_mean":
                return score / (max(head) - position + 1)
            case "streaming" | "recent":
                return position
            case "knorm":
                return -np.linalg.norm(key)
            case "keydiff":
                units = [entry[0] / np.linalg.norm(entry[0]) for entry in head.values()]
                mean = np.sum(units, axis=0)
                return -key @ mean / np.linalg.norm(key) / np.linalg.norm(mean)
        raise NotImplementedError(self.keep.scorer)

    @staticmethod
    def _heads(q_NH, K):
        return [(n, n // (len(q_NH) // K)) for n in range(len(q_NH))]


def _softmax(q_H, k_SH):
    score = k_SH @ q_H / np.sqrt(len(q_H))
    weight = np.exp(score - score.max())
    return weight / weight.sum()


def _pooled(row, pool):
    padded = np.pad(row, pool // 2)
    return np.array([padded[i : i + pool].mean() for i in range(len(row))])
