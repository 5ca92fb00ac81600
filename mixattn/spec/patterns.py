"""Named wirings: functions from the number of layers to a wiring string (see `mixattn.spec.wiring`).

    0s_0s_2_3s_3s_2        entry i is the layer whose K/V layer i reads; `s` = sliding window

At 24 layers, fifteen of the `PATTERNS` are those of the MixAttention paper (arXiv 2409.15012, figures 2 and
9) entry for entry. Other depths follow the same rules:

* `ma*` divides the stack into four blocks of equal length (two below 12 layers), with one full layer per
  block: its first layer (MA, Pairs) or its last (Offset). The sliding layers between share in groups of 2, 3,
  2, 3, ...
* `ma_successive_*` and `ma_noshare_*` place their full layers at the same fraction of the depth.
* `cla` shares between neighbors (arXiv 2405.12981). In `yoco` the upper half reads the middle layer (arXiv
  2405.05254). `local_global` has five sliding layers per full layer, without sharing (Gemma 3).
"""

import itertools
from collections.abc import Callable, Iterator

type Pattern = Callable[[int], str]
type Reads = dict[int, int]  # layer -> the layer whose K/V it reads


def _wiring_string(n_layers: int, full: Reads, sliding: Reads) -> str:
    return "_".join(f"{sliding[i]}s" if i in sliding else str(full[i]) for i in range(n_layers))


def _require_layers(name: str, n_layers: int, min_layers: int) -> None:
    if n_layers < min_layers:
        raise ValueError(f"pattern {name} needs at least {min_layers} layers, not {n_layers}")


def _runs(n_layers: int, full: Reads) -> Iterator[range]:
    """The maximal runs of layers that are not full."""
    edges = [-1, *sorted(full), n_layers]
    yield from (range(a + 1, b) for a, b in itertools.pairwise(edges) if b - a > 1)


def _groups(run: range, first: int = 2) -> Reads:
    """Divides a run into groups: the first of size `first`, then 3 after a 2 and 2 after any other size."""
    reads: Reads = {}
    start, size = run.start, first
    while start < run.stop:
        reads |= dict.fromkeys(range(start, min(start + size, run.stop)), start)
        start, size = start + size, 3 if size == 2 else 2
    return reads


def _one_group(run: range) -> Reads:
    return dict.fromkeys(run, run.start)


def _share_sliding(n_layers: int, full: Reads, group: Callable[[range], Reads] = _groups) -> str:
    sliding: Reads = {}
    for run in _runs(n_layers, full):
        sliding |= group(run)
    return _wiring_string(n_layers, full, sliding)


def _blocks(n_layers: int) -> list[range]:
    count = 4 if n_layers >= 12 else 2
    edges = [i * n_layers // count for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def standard(n_layers: int) -> str:
    """Every layer is full and owns its K/V."""
    _require_layers("standard", n_layers, 1)
    return "_".join(map(str, range(n_layers)))


def swa(n_layers: int) -> str:
    """Every layer slides and owns its K/V."""
    _require_layers("swa", n_layers, 1)
    return "_".join(f"{i}s" for i in range(n_layers))


def ma(n_layers: int) -> str:
    """Full at the first layer of each block and at the last layer of all; all of them read layer 0."""
    _require_layers("ma", n_layers, 4)
    firsts = [block.start for block in _blocks(n_layers)]
    return _share_sliding(n_layers, dict.fromkeys([*firsts, n_layers - 1], 0))


def ma_endslide(n_layers: int) -> str:
    """`ma` whose last layer slides."""
    _require_layers("ma_endslide", n_layers, 4)
    return _share_sliding(n_layers, dict.fromkeys((block.start for block in _blocks(n_layers)), 0))


def _offset(n_layers: int) -> Reads:
    lasts = [block.stop - 1 for block in _blocks(n_layers)]
    return dict.fromkeys(lasts, lasts[0])


def _pairs(n_layers: int) -> Reads:
    """Full layers of the lower half of the blocks read layer 0; the others read the upper half's first."""
    firsts = [block.start for block in _blocks(n_layers)]
    half = len(firsts) // 2
    return {layer: firsts[0] if i < half else firsts[half] for i, layer in enumerate(firsts)}


def ma_offset(n_layers: int) -> str:
    """Full at the last layer of each block; all of them read the first: one full owner, with deeper K/V."""
    _require_layers("ma_offset", n_layers, 4)
    return _share_sliding(n_layers, _offset(n_layers))


def ma_pairs(n_layers: int) -> str:
    """Full at the first layer of each block, shared in pairs of blocks: two full owners."""
    _require_layers("ma_pairs", n_layers, 4)
    return _share_sliding(n_layers, _pairs(n_layers))


def ma_offset_slideshare(n_layers: int) -> str:
    """`ma_offset` whose sliding layers form one group per block."""
    _require_layers("ma_offset_slideshare", n_layers, 4)
    return _share_sliding(n_layers, _offset(n_layers), _one_group)


def ma_pairs_slideshare(n_layers: int) -> str:
    """`ma_pairs` whose sliding layers form one group per block."""
    _require_layers("ma_pairs_slideshare", n_layers, 4)
    return _share_sliding(n_layers, _pairs(n_layers), _one_group)


def _successive(name: str, first: int, second: int) -> Pattern:
    """Two pairs of adjacent full layers, at `first` and `second` of 24; the layers of a pair share K/V."""

    def pattern(n_layers: int) -> str:
        _require_layers(name, n_layers, 6)
        owners = first * n_layers // 24, min(second * n_layers // 24, n_layers - 2)
        return _share_sliding(n_layers, {a + i: a for a in owners for i in (0, 1)})

    return pattern


def _noshare(name: str, at: int, after: int) -> Pattern:
    """One full layer, `at` of 24, without readers; the first sliding group above it has `after` layers."""

    def pattern(n_layers: int) -> str:
        _require_layers(name, n_layers, 4)
        full = at * n_layers // 24
        below, above = range(full), range(full + 1, n_layers)
        return _wiring_string(n_layers, {full: full}, _groups(below) | _groups(above, after))

    return pattern


def cla(n_layers: int) -> str:
    """Cross-layer attention of two: even layers own K/V, odd layers read the layer below."""
    _require_layers("cla", n_layers, 1)
    return "_".join(str(i - i % 2) for i in range(n_layers))


def yoco(n_layers: int) -> str:
    """The lower half slides; the upper half reads the K/V of its first layer."""
    _require_layers("yoco", n_layers, 2)
    half = n_layers // 2
    return "_".join(f"{i}s" if i < half else str(half) for i in range(n_layers))


def local_global(n_layers: int) -> str:
    """Five sliding layers per full layer, without sharing."""
    _require_layers("local_global", n_layers, 1)
    return "_".join(f"{i}" if i % 6 == 5 else f"{i}s" for i in range(n_layers))


PATTERNS: dict[str, Pattern] = {
    "standard": standard,
    "swa": swa,
    "ma": ma,
    "ma_endslide": ma_endslide,
    "ma_offset": ma_offset,
    "ma_pairs": ma_pairs,
    "ma_offset_slideshare": ma_offset_slideshare,
    "ma_pairs_slideshare": ma_pairs_slideshare,
    "ma_successive_1": _successive("ma_successive_1", 0, 12),
    "ma_successive_2": _successive("ma_successive_2", 5, 12),
    "ma_successive_3": _successive("ma_successive_3", 10, 17),
    "ma_successive_4": _successive("ma_successive_4", 10, 22),
    "ma_noshare_1": _noshare("ma_noshare_1", 3, after=3),
    "ma_noshare_2": _noshare("ma_noshare_2", 10, after=2),
    "ma_noshare_3": _noshare("ma_noshare_3", 20, after=1),
    "cla": cla,
    "yoco": yoco,
    "local_global": local_global,
}
