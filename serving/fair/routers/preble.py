"""Preble: long known prefixes go to a worker that holds them, all other prompts to the least loaded worker.

A prompt whose known prefix is longer than the rest goes to a worker that holds the prefix (exploit). Any
other prompt goes to the worker with the least load (explore). Load is the work expected from the prefixes
assigned to a worker in the last `window_s` seconds: prefill of uncached tokens, and decoding. If the load of
the most loaded worker exceeds `imbalance` times that of the least loaded, its cheapest prefix moves to the
latter. Preble does not distinguish clients.

Simplified: prefill and decode times are linear in tokens, and the eviction term of the published cost is
left out.

Source: Preble (arXiv 2407.00023) and its published scheduler.
"""

from collections import deque
from collections.abc import Sequence

from serving.fair.routers.base import DispatchedRequest, Router
from serving.fair.routers.load_index import WorkerId
from serving.fair.routers.prefix_map import Block, PrefixMap, PrefixNode
from serving.request import RequestInfo


class Preble(Router):
    """Follows long known prefixes, and otherwise balances load."""

    prefix_map: PrefixMap

    def __init__(
        self,
        *,
        window_s: float = 180.0,
        prefill_s: float = 0.2137e-3,
        token_s: float = 1e-3,
        decode_tok: int = 45,
        imbalance: float = 1.5,
        max_blocks: int = 100_000,
    ) -> None:
        """
        Args:
          window_s: age in seconds at which assigned work no longer counts as load.
          prefill_s: seconds per uncached prompt token.
          token_s: seconds per output token, as its share of a batch.
          decode_tok: output tokens expected of a request before any has ended.
          imbalance: load ratio above which a prefix moves.
          max_blocks: see `PrefixMap`.
        """
        super().__init__()
        self.prefix_map = PrefixMap(max_blocks)
        self.window_s, self.prefill_s, self.token_s, self.imbalance = window_s, prefill_s, token_s, imbalance
        self._outputs: deque[int] = deque([decode_tok], maxlen=101)
        self._recent: deque[tuple[float, WorkerId, PrefixNode, float]] = deque()
        self._work_of: dict[WorkerId, float] = {}
        self._prefixes: dict[WorkerId, dict[PrefixNode, float]] = {}

    def join(self, worker: WorkerId, capacity: float = 1.0, *, max_live: int | None = None) -> None:
        super().join(worker, capacity, max_live=max_live)
        self._work_of[worker], self._prefixes[worker] = 0.0, {}

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        self._expire(now_s)
        match, holders = self.prefix_map.longest(blocks)
        able = [w for w in holders if self._open(w)]
        if request.prompt_tok - match < match and able:
            return self._lightest(able)
        return self._lightest([w for w in self.load_of if self._open(w)])

    def _on_dispatch(self, sent: DispatchedRequest, now_s: float) -> None:
        held = self.prefix_map.held_tok(sent.blocks, sent.worker)
        nodes = sent.nodes = self.prefix_map.insert(sent.blocks, sent.worker)
        if not nodes:
            return
        # The prefix that others may share is everything but the last block.
        node = nodes[-2] if len(nodes) > 1 else nodes[-1]
        work = (
            self.prefill_s * max(0, sent.request.prompt_tok - held) + self.token_s * self._expected_output()
        )
        self._recent.append((now_s, sent.worker, node, work))
        self._work_of[sent.worker] += work
        prefixes = self._prefixes[sent.worker]
        prefixes[node] = prefixes.get(node, 0.0) + work
        self._rebalance()

    def _on_end(self, sent: DispatchedRequest, output_tok: int) -> None:
        self._outputs.append(output_tok)

    def _on_leave(self, worker: WorkerId) -> None:
        self.prefix_map.remove_worker(worker)
        del self._work_of[worker], self._prefixes[worker]
        self._recent = deque(entry for entry in self._recent if entry[1] != worker)

    def _expected_output(self) -> int:
        return sorted(self._outputs)[len(self._outputs) // 2]

    def _lightest(self, workers: Sequence[WorkerId]) -> WorkerId:
        return min(workers, key=lambda w: (self._work_of[w] / self.capacity_of[w], self.load_of[w], w))

    def _expire(self, now_s: float) -> None:
        while self._recent and self._recent[0][0] < now_s - self.window_s:
            _, worker, node, work = self._recent.popleft()
            self._work_of[worker] -= work
            left = self._prefixes[worker].get(node, 0.0) - work
            if left > 1e-12:
                self._prefixes[worker][node] = left
            else:
                self._prefixes[worker].pop(node, None)

    def _rebalance(self) -> None:
        light = self._lightest(list(self.load_of))
        heavy = max(self.load_of, key=lambda w: (self._work_of[w] / self.capacity_of[w], -w))
        movable = [node for node in self._prefixes[heavy] if light not in node.workers]
        if self._work_of[heavy] <= self.imbalance * self._work_of[light] or len(movable) < 2:
            return
        cheapest = min(movable, key=lambda node: (self._prefixes[heavy][node], node.end_tok))
        # From now on, requests with this prefix may go to the lighter worker.
        while cheapest.parent is not None:
            cheapest.workers[light] = False
            cheapest = cheapest.parent
