"""Do finite ratings exist? The maximum-likelihood fit needs every group of models to win against the rest."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from mixattn.evals.arena.stats.counts import Counts

NAMED = 12  # models that a message lists


def check_connected(counts: Counts, models: Sequence[str]) -> None:
    """Refuses votes whose ratings are not determined or not finite (Ford 1957).

    Raises:
      ValueError: some models never met the others (the smaller side is listed), or never lost to or never won
        against the others. A tie counts both ways.
    """
    loses, ties, wins = counts.weight.T
    beats = _graph(counts, wins + ties > 0, loses + ties > 0)
    islands, island = connected_components(beats, directed=True, connection="weak")
    if islands > 1:
        sizes = np.bincount(island)
        inside = np.flatnonzero(island != np.argmax(sizes))
        raise ValueError(
            f"the models form {islands} separate islands that never met: {_names(models, inside)} "
            f"and the other {len(models) - len(inside)} have no vote in common"
        )
    groups, group = connected_components(beats, directed=True, connection="strong")
    if groups == 1:
        return
    undefeated, winless = _ends(beats, group, groups)
    found = []
    for label, which in (("undefeated", undefeated), ("without a win or tie", winless)):
        if len(which):
            found.append(f"{_names(models, which)} {'is' if len(which) == 1 else 'are'} {label}")
    raise ValueError(
        f"ratings would be infinite: against the other models {' and '.join(found)}; "
        "more votes, or leaving these models out, would help"
    )


def is_connected(counts: Counts) -> bool:
    """Whether finite ratings exist."""
    loses, ties, wins = counts.weight.T
    beats = _graph(counts, wins + ties > 0, loses + ties > 0)
    return connected_components(beats, directed=True, connection="strong", return_labels=False) == 1


def _graph(counts: Counts, low_scores: np.ndarray, high_scores: np.ndarray) -> csr_array:
    """(M, M) an edge from the model that scored to the one it scored against."""
    start = np.concatenate([counts.low[low_scores], counts.high[high_scores]])
    end = np.concatenate([counts.high[low_scores], counts.low[high_scores]])
    size = (counts.n_models, counts.n_models)
    return csr_array((np.ones(len(start)), (start, end)), shape=size)


def _ends(beats: csr_array, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Models of groups that nobody outside scored against, and of groups that never scored outside."""
    start, end = beats.nonzero()
    crosses = group[start] != group[end]
    hit = np.zeros(groups, dtype=bool)
    hit[group[end[crosses]]] = True
    scored = np.zeros(groups, dtype=bool)
    scored[group[start[crosses]]] = True
    return np.flatnonzero(~hit[group]), np.flatnonzero(~scored[group])


def _names(models: Sequence[str], which: np.ndarray) -> str:
    named = ", ".join(models[i] for i in which[:NAMED])
    return named + (f" and {len(which) - NAMED} more" if len(which) > NAMED else "")
