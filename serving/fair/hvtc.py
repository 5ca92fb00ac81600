"""Hierarchical VTC: organisations share the server, users their organisation, sessions their user.

A client id is a path, "org/user/session" (any depth). At every level the child with the smallest counter goes
first, and a returning child is lifted among its siblings. So each level is VTC: siblings that both wait drift
apart by at most 2U. Splitting one organisation into many identities gains nothing, whereas flat VTC gives k
identities of one user k shares.

Source: ours.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account, Amount, Ledger
from serving.request import ClientId, RequestInfo


class ShareNode:
    """One path prefix, and the order of its children that have waiting requests.

    Attributes:
      waiting: names of the children with waiting requests, smallest counter first.
      last_left: the child that was the last to have a waiting request.
      join_order: position among all nodes in the order in which they started to wait.
    """

    __slots__ = ("account", "children", "join_order", "last_left", "name", "parent", "waiting")

    def __init__(self, name: str, account: Account, parent: "ShareNode | None") -> None:
        self.name, self.account = name, account
        self.parent = parent or self  # the root is its own parent
        self.children: dict[str, ShareNode] = {}
        self.last_left: ShareNode | None = None
        self.join_order = 0
        self.waiting: LazyMinHeap[str] = LazyMinHeap(lambda name: self.children[name].key)

    @property
    def key(self) -> tuple[Amount, int, int]:
        return self.account.counter, self.account.turn, self.join_order

    @property
    def waits(self) -> bool:
        return self.name in self.parent.waiting

    def floor(self) -> Amount | None:
        """The counter that a child is lifted to when it starts to wait."""
        name = self.waiting.top()
        node = self.last_left if name is None else self.children[name]
        return None if node is None else node.account.counter


class Hvtc(PolicyBase):
    """Applies VTC at every level of client paths."""

    WEIGHTED = True

    def __init__(
        self,
        *,
        separator: str = "/",
        weights: Mapping[str, float | Fraction] | None = None,
        **options: Any,
    ) -> None:
        """`weights`: share of any path among its siblings ("org", "org/user"); 1 where not named."""
        super().__init__(**options)
        self.separator = separator
        self.joins = 0  # times that a node started to wait
        self.inner_ledger = Ledger({name: Fraction(w) for name, w in (weights or {}).items()})
        self._reset_tree()

    def pick(self, now_s: float) -> RequestInfo | None:
        node = self.root
        while (name := node.waiting.top()) is not None:
            node = node.children[name]
        return None if node is self.root else self.backlog.head(node.name)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        """None: clients of different organisations have no equal shares. Siblings keep VTC's bound."""
        return None

    def set_weight(self, client: ClientId, weight: float | Fraction) -> None:
        """`client`: any path, as in `weights`."""
        self._check_weight(client, weight)
        if (account := self.inner_ledger.accounts.get(client)) is not None:
            account.reweigh(Fraction(weight))
        self.inner_ledger.weights[client] = Fraction(weight)

    def _reset_tree(self) -> None:
        self.root = ShareNode("", Account(""), None)
        self._paths: dict[ClientId, list[ShareNode]] = {}

    def _path(self, client: ClientId) -> list[ShareNode]:
        """Nodes from below the root down to the client's leaf, created where missing.

        Every path prefix has an inner node, whose name ends in the separator. A client is a leaf below the
        inner node of its whole name, beside any deeper paths.
        """
        nodes = self._paths.get(client)
        if nodes is None:
            parts = client.split(self.separator)
            prefixes = [self.separator.join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            node, nodes = self.root, []
            for prefix in prefixes:
                node = self._child(node, prefix + self.separator, self.inner_ledger, prefix)
                nodes.append(node)
            nodes.append(self._child(node, client, self.ledger, client))
            self._paths[client] = nodes
        return nodes

    def _child(self, parent: ShareNode, name: str, ledger: Ledger, path: str) -> ShareNode:
        if name not in parent.children:
            parent.children[name] = ShareNode(name, ledger.open(path), parent)
        return parent.children[name]

    def _on_join(self, account: Account) -> None:
        for node in self._path(account.client):
            floor = node.parent.floor()
            if not node.waits and floor is not None and node.account.counter <= floor:
                node.account.lift_to(floor)
                node.account.turn = -1  # as for a new client, so that a forgotten account makes no difference

    def _on_enqueue(self, charge: Charge) -> None:
        for node in self._path(charge.request.client):
            if not node.waits:
                node.join_order = self.joins
                self.joins += 1
            node.parent.waiting.push(node.name)

    def _on_dequeue(self, charge: Charge, emptied: bool) -> None:
        if emptied:
            for node in reversed(self._path(charge.request.client)):
                if len(node.waiting):
                    break
                node.parent.waiting.discard(node.name)
                node.parent.last_left = node

    def _on_admit(self, charge: Charge) -> None:
        for node in self._path(charge.request.client):
            node.account.turn = charge.admission

    def _before_charge(self, account: Account, amount: int) -> None:
        for node in self._path(account.client)[:-1]:
            if amount > 0:
                node.account.charge(amount)
            else:
                node.account.refund(-amount)

    def _on_refund(self, account: Account) -> None:
        for node in self._path(account.client):
            if node.waits:
                node.parent.waiting.push(node.name)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Accounts a lift would raise to their siblings' floor. Prunes their leaves and empty inner nodes.

        Returns none while a refund could still lower a floor.
        """
        if any(c.charged and c.request.id not in self.backlog for c in self.charge_of.values()):
            return []
        gone = []
        for account in idle:
            leaf = self._path(account.client)[-1]
            if self._redundant(leaf):
                gone.append(account)
                self._prune(leaf)
                del self._paths[account.client]
        return gone

    def _redundant(self, node: ShareNode) -> bool:
        floor = node.parent.floor()
        only_child = len(node.parent.children) == 1 and not node.waits
        return only_child or (
            node is not node.parent.last_left and floor is not None and node.account.counter <= floor
        )

    def _prune(self, node: ShareNode) -> None:
        parent = node.parent
        del parent.children[node.name]
        if parent.last_left is node:
            parent.last_left = None
        if parent is not self.root and not parent.children and self._redundant(parent):
            self.inner_ledger.drop(parent.name.removesuffix(self.separator))
            self._prune(parent)

    def snapshot(self) -> dict[str, Any]:
        nodes, todo = [], [self.root]
        while todo:
            node = todo.pop()
            todo += node.children.values()
            nodes.append([node.name, node.join_order, node.last_left and node.last_left.name])
        return super().snapshot() | {
            "joins": self.joins,
            "inner": self.inner_ledger.snapshot(),
            "nodes": nodes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.joins = state["joins"]
        self.inner_ledger.restore(state["inner"])
        self._restored_nodes = {name: (order, last_left) for name, order, last_left in state["nodes"]}
        super().restore(state)

    def _rebuild(self) -> None:
        self._reset_tree()
        nodes = {self.root.name: self.root}
        for client in self.ledger.accounts:
            nodes |= {node.name: node for node in self._path(client)}
        for name, node in nodes.items():
            node.join_order, last_left = self._restored_nodes[name]
            node.last_left = None if last_left is None else node.children[last_left]
        for client in self.backlog.waiting_of:
            for node in self._path(client):
                node.parent.waiting.push(node.name)
