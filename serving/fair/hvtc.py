"""Hierarchical VTC: organisations share the server, users share their organisation, sessions their user.

A client's name is a path, "org/user/session" (any depth). At every level the child with the least counter
goes
first and is lifted among its siblings, so each level is VTC: siblings that both wait drift apart by
at most 2U. Who splits into many identities under one organisation gains nothing.

Ours; flat VTC gives k identities of one user k shares.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from serving.fair.base import Charge, PolicyBase
from serving.fair.lazy_heap import LazyMinHeap
from serving.fair.ledger import Account, Amount, Ledger
from serving.request import ClientId, RequestInfo


class ShareNode:
    """One name at one level, and the order of its children that have something waiting."""

    __slots__ = ("account", "children", "joined", "last_left", "least", "name", "parent")

    def __init__(self, name: str, account: Account, parent: "ShareNode | None"):
        self.name, self.account, self.parent = name, account, parent
        self.children: dict[str, ShareNode] = {}
        self.last_left: ShareNode | None = None
        self.joined = 0
        self.least: LazyMinHeap[str] = LazyMinHeap(lambda name: self.children[name].key)

    @property
    def key(self) -> tuple[Amount, int, int]:
        return self.account.counter, self.account.turn, self.joined

    @property
    def waits(self) -> bool:
        return self.parent is not None and self.name in self.parent.least

    def floor(self) -> Amount | None:
        """What a child that starts to wait is lifted to."""
        name = self.least.top()
        node = self.last_left if name is None else self.children[name]
        return None if node is None else node.account.counter


class Hvtc(PolicyBase):
    def __init__(
        self,
        *,
        separator: str = "/",
        weights: Mapping[str, float | Fraction] | None = None,
        **options,
    ):
        """`weights`: share of any path among its siblings ("org", "org/user"); 1 where not named."""
        super().__init__(**options)
        self.separator = separator
        self.joins = 0
        self.inner = Ledger({name: Fraction(w) for name, w in (weights or {}).items()})
        self._plant()

    def pick(self, now_s: float) -> RequestInfo | None:
        node = self.root
        while (name := node.least.top()) is not None:
            node = node.children[name]
        return None if node is self.root else self.backlog.head(node.name)

    def gap_bound(self, *, memory_tok: int, max_prompt_tok: int, max_hit_tok: int = 0) -> None:
        """None: clients of different organisations are not meant to be equal; siblings keep VTC's bound."""
        return None

    def _plant(self) -> None:
        self.root = ShareNode("", Account(""), None)
        self._lines: dict[ClientId, list[ShareNode]] = {}

    def _line(self, client: ClientId) -> list[ShareNode]:
        """Nodes from below the root down to the client's own, made where missing.

        Every path has an inner node (its name ends in the separator); a client is a leaf below the inner node
        of its whole name, beside whatever lies deeper.
        """
        line = self._lines.get(client)
        if line is None:
            parts = client.split(self.separator)
            paths = [self.separator.join(parts[:depth]) for depth in range(1, len(parts) + 1)]
            node, line = self.root, []
            for path in paths:
                node = self._child(node, path + self.separator, self.inner, path)
                line.append(node)
            line.append(self._child(node, client, self.ledger, client))
            self._lines[client] = line
        return line

    def _child(self, parent: ShareNode, name: str, ledger: Ledger, path: str) -> ShareNode:
        if name not in parent.children:
            parent.children[name] = ShareNode(name, ledger.open(path), parent)
        return parent.children[name]

    def _joins(self, account: Account) -> None:
        for node in self._line(account.client):
            assert node.parent is not None
            floor = node.parent.floor()
            if not node.waits and floor is not None and node.account.counter <= floor:
                node.account.lift_to(floor)
                node.account.turn = -1  # like a newcomer, so that a forgotten account makes no difference

    def _waits(self, tab: Charge) -> None:
        for node in self._line(tab.request.client):
            assert node.parent is not None
            if not node.waits:
                node.joined = self.joins
                self.joins += 1
            node.parent.least.push(node.name)

    def _leaves(self, tab: Charge, emptied: bool) -> None:
        if emptied:
            for node in reversed(self._line(tab.request.client)):
                assert node.parent is not None
                if len(node.least):
                    break
                node.parent.least.discard(node.name)
                node.parent.last_left = node

    def _admitted(self, tab: Charge) -> None:
        for node in self._line(tab.request.client):
            node.account.turn = tab.admitted

    def _before_change(self, account: Account, amount: int) -> None:
        for node in self._line(account.client)[:-1]:
            if amount > 0:
                node.account.charge(amount)
            else:
                node.account.refund(-amount)

    def _refunded(self, account: Account) -> None:
        for node in self._line(account.client):
            if node.waits:
                assert node.parent is not None
                node.parent.least.push(node.name)

    def _forgettable(self, idle: list[Account]) -> list[Account]:
        """Those that a lift would bring to their siblings' floor anyway, and inner nodes left without
        children.

        Nothing is dropped while a refund could still lower a floor.
        """
        if any(tab.billed and tab.request.id not in self.backlog for tab in self.tabs.values()):
            return []
        gone = []
        for account in idle:
            leaf = self._line(account.client)[-1]
            if self._redundant(leaf):
                gone.append(account)
                self._prune(leaf)
                del self._lines[account.client]
        return gone

    def _redundant(self, node: ShareNode) -> bool:
        assert node.parent is not None
        floor = node.parent.floor()
        only = len(node.parent.children) == 1 and not node.waits
        return only or (
            node is not node.parent.last_left and floor is not None and node.account.counter <= floor
        )

    def _prune(self, node: ShareNode) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.name]
        if parent.last_left is node:
            parent.last_left = None
        if parent is not self.root and not parent.children and self._redundant(parent):
            self.inner.drop(parent.name.removesuffix(self.separator))
            self._prune(parent)

    def snapshot(self) -> dict[str, Any]:
        nodes, todo = [], [self.root]
        while todo:
            node = todo.pop()
            todo += node.children.values()
            nodes.append([node.name, node.joined, node.last_left and node.last_left.name])
        return super().snapshot() | {"joins": self.joins, "inner": self.inner.snapshot(), "nodes": nodes}

    def restore(self, state: dict[str, Any]) -> None:
        self.joins = state["joins"]
        self.inner.restore(state["inner"])
        self._kept = {name: (joined, last_left) for name, joined, last_left in state["nodes"]}
        super().restore(state)

    def _rebuild(self) -> None:
        self._plant()
        seen = {self.root.name: self.root}
        for client in self.ledger.accounts:
            seen |= {node.name: node for node in self._line(client)}
        for name, node in seen.items():
            node.joined, last_left = self._kept[name]
            node.last_left = None if last_left is None else node.children[last_left]
        for client in self.backlog.waiting_of:
            for node in self._line(client):
                assert node.parent is not None
                node.parent.least.push(node.name)
