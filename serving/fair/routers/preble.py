"""Preble: follow a prefix where it is long, look for the least work where it is not.

Source: Preble (arXiv 2407.00023) and its published scheduler. A prompt whose known prefix is longer than
the rest goes to a worker that holds the prefix (exploit); any other goes to the worker with the least load
(explore), where load is the work expected from the prefixes assigned to a worker in the last `window_s`
seconds: prefill of what misses, and decoding. If the heaviest worker has more than `imbalance` times the
load of the lightest, the heaviest sheds its cheapest prefix to the lightest. Not aware of clients.

Simplified: prefill and decode times are linear in tokens, and the eviction term of the published cost is
left out.
"""

from collections import deque
from collections.abc import Sequence

from serving.fair.routers.base import Router, Sent
from serving.fair.routers.prefix_map import Block, PrefixMap, PrefixNode, WorkerId
from serving.request import RequestInfo


class Preble(Router):
    def __init__(
        self,
        *,
        window_s: float = 180.0,
        prefill_s: float = 0.2137e-3,
        token_s: float = 1e-3,
        decode_tok: int = 45,
        imbalance: float = 1.5,
        max_blocks: int = 100_000,
    ):
        """
        Args:
          prefill_s: seconds a prompt token. token_s: seconds an output token, its share of a batch.
          decode_tok: outputs expected of a request before any has ended.
          imbalance: load ratio above which prefixes move; below 1 never.
        """
        super().__init__()
        self.tree = PrefixMap(max_blocks)
        self.window_s, self.prefill_s, self.token_s, self.imbalance = window_s, prefill_s, token_s, imbalance
        self._outputs: deque[int] = deque([decode_tok], maxlen=101)
        self._recent: deque[tuple[float, WorkerId, PrefixNode, float]] = deque()
        self._work_of: dict[WorkerId, float] = {}
        self._prefixes: dict[WorkerId, dict[PrefixNode, float]] = {}

    def join(self, worker: WorkerId, capacity: float = 1.0) -> None:
        super().join(worker, capacity)
        self._work_of[worker], self._prefixes[worker] = 0.0, {}

    def _choose(self, request: RequestInfo, blocks: Sequence[Block], now_s: float) -> WorkerId:
        self._age(now_s)
        known = [node for node in self.tree.walk(blocks) if any(w in self.load_of for w in node.workers)]
        matched = known[-1].end_tok if known else 0
        if request.prompt_tok - matched < matched:
            return self._lightest([w for w in known[-1].workers if w in self.load_of])
        return self._lightest(list(self.load_of))

    def _dispatched(self, sent: Sent, now_s: float) -> None:
        held = self.tree.matched(sent.blocks).get(sent.worker, 0)
        line = self.tree.insert(sent.blocks, sent.worker)
        if not line:
            return
        # The prefix that others may share is everything but the last block.
        node = line[-2] if len(line) > 1 else line[-1]
        work = (
            self.prefill_s * max(0, sent.request.prompt_tok - held) + self.token_s * self._expected_output()
        )
        self._recent.append((now_s, sent.worker, node, work))
        self._work_of[sent.worker] += work
        prefixes = self._prefixes[sent.worker]
        prefixes[node] = prefixes.get(node, 0.0) + work
        self._rebalance()

    def _ended(self, sent: Sent, output_tok: int) -> None:
        self._outputs.append(output_tok)

    def _gone(self, worker: WorkerId) -> None:
        self.tree.forget(worker)
        del self._work_of[worker], self._prefixes[worker]
        self._recent = deque(entry for entry in self._recent if entry[1] != worker)

    def _expected_output(self) -> int:
        return sorted(self._outputs)[len(self._outputs) // 2]

    def _lightest(self, workers: Sequence[WorkerId]) -> WorkerId:
        return min(workers, key=lambda w: (self._work_of[w] / self.capacity_of[w], self.load_of[w], w))

    def _age(self, now_s: float) -> None:
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
        # From here on requests with this prefix find the lighter worker first.
        while cheapest.parent is not None:
            cheapest.workers[light] = None
            cheapest = cheapest.parent
