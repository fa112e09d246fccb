"""Save or recompute: which forward values the adjoint finds in memory, and which it computes once more.

A value that the adjoint reads can be saved (written, kept and read again) or recomputed from other available values.
The cheapest choice for all of them together is a minimum cut: of each value it is asked whether it is available and
whether it is recomputed, and each answer has its price.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from ritornello.program.ops import ELEMENTS, LAYOUT, OPS, REDUCTION
from ritornello.program.program import Node, Value

SAVE = 16.0  # what keeping one element costs, in multiplications: a store and a load beyond the first cache
_NEVER = 1e12


def choose_saved(nodes: Sequence[Node], needed: Iterable[Value], free: Iterable[Value]) -> set[Value]:
    """The values to save so that all needed ones are available, at the least cost.

    Args:
        nodes: the program.
        needed: values that the adjoint reads.
        free: values that are in memory anyway, or cost nothing to have: inputs, states, parameters.
    """
    at_hand = set(free)
    cut = _Network()
    seen: set[Value] = set()
    waiting = [value for value in needed if value not in at_hand]
    for value in waiting:
        cut.edge("source", ("available", value), _NEVER)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = nodes[value]
        cut.edge(("available", value), ("recomputed", value), SAVE * node.size)
        cut.edge(("recomputed", value), "sink", _recompute_cost(node, nodes))
        for arg in node.args:
            if arg not in at_hand:
                cut.edge(("recomputed", value), ("available", arg), _NEVER)
                waiting.append(arg)
    reached = cut.source_side()
    return {v for v in seen if ("available", v) in reached and ("recomputed", v) not in reached}


def _recompute_cost(node: Node, nodes: Sequence[Node]) -> float:
    kind = OPS[node.op].kind if node.op in OPS else None
    if kind == LAYOUT:
        return 0.5
    if kind in (ELEMENTS, REDUCTION):
        return OPS[node.op].cost * max([node.size, *(nodes[arg].size for arg in node.args)])
    return _NEVER


class _Network:
    """Maximum flow by shortest augmenting paths (Edmonds & Karp 1972)."""

    def __init__(self) -> None:
        self.capacity: dict[object, dict[object, float]] = defaultdict(dict)

    def edge(self, start: object, end: object, capacity: float) -> None:
        self.capacity[start][end] = self.capacity[start].get(end, 0.0) + capacity
        self.capacity[end].setdefault(start, 0.0)

    def source_side(self) -> set[object]:
        """What the source still reaches when no more can flow."""
        while True:
            parent = self._search()
            if "sink" not in parent:
                return set(parent)
            path = []
            at: object = "sink"
            while at != "source":
                path.append((parent[at], at))
                at = parent[at]
            flow = min(self.capacity[a][b] for a, b in path)
            for a, b in path:
                self.capacity[a][b] -= flow
                self.capacity[b][a] += flow

    def _search(self) -> dict[object, object]:
        parent: dict[object, object] = {"source": "source"}
        queue: deque[object] = deque(["source"])
        while queue and "sink" not in parent:
            here = queue.popleft()
            for there, capacity in self.capacity[here].items():
                if capacity > 1e-9 and there not in parent:
                    parent[there] = here
                    queue.append(there)
        return parent
