"""Naive twins of the engine: plain loops that call a cell one row at a time. Nothing here is shared with the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ritornello.cells import (
    CELLS,
    GRU,
    LSTM,
    SLSTM,
    SRU,
    TREE_CELLS,
    Cell,
    DeepTransition,
    Elman,
    ElmanJordan,
    GroupedRNN,
    Jordan,
    Leaky,
    MultiplicativeRNN,
    PeepholeLSTM,
    ProjectedLSTM,
    RecurrentHighway,
    RecursiveNet,
    RecursiveTensorNet,
    TeacherForced,
    meaning_of_total,
    over_predecessors,
)


def segments(length: int, resets: Sequence[bool]) -> list[tuple[int, int]]:
    """The runs of steps that no state crosses out of: [start, stop) of each, in time's order."""
    if length == 0:
        return []
    starts = sorted({0} | {step for step in range(length) if resets[step]})
    return list(zip(starts, [*starts[1:], length], strict=True))


def chain_twin(
    cell: Cell,
    x: Tensor,
    initial: Any,
    given: Any = None,
    lengths: Sequence[int] | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Each sequence by itself, step by step.

    Args:
        x: (time, batch, features).
        initial: what a sequence begins with, fields (1, size).
        given: what the sequences enter with instead, fields (batch, size); read by the segment that is walked first,
            unless a reset stands at the very first step of time.

    Returns:
        The states of all steps, fields (time, batch, size), zero in the padding; and the last, fields (batch, size).
    """
    time, batch = x.shape[:2]
    columns, lasts = [], []
    for b in range(batch):
        length = time if lengths is None else lengths[b]
        marks = [False] * time if resets is None else resets[:, b].tolist()
        enters = initial if given is None else cell.State(*(field[b : b + 1] for field in given))
        state, states = enters, {}
        runs = segments(length, marks)
        for number, (start, stop) in enumerate(reversed(runs) if reverse else runs):
            fresh = number > 0 or (marks[0] and not reverse)
            state = initial if fresh else enters
            for t in reversed(range(start, stop)) if reverse else range(start, stop):
                state = cell(x[t, b : b + 1], state)
                states[t] = state
        columns.append([states.get(t) for t in range(time)])
        lasts.append(state)
    fields = range(len(cell.State._fields))
    return cell.State(*(_grid(columns, field, initial, time) for field in fields)), cell.State(
        *(torch.cat([initial[field][:0], *(state[field] for state in lasts)]) for field in fields)
    )


def truncated_twin(
    cell: Cell,
    x: Tensor,
    initial: Any,
    given: Any,
    k1: int,
    k2: int,
    lengths: Sequence[int] | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`chain_twin`, whose losses reach back to k2 steps before the end of their window of k1: each window by itself.

    A window is computed from the step where it begins to reach, from a detached state; only its own steps are kept.
    """
    time, batch = x.shape[:2]
    columns, lasts = [], []
    for b in range(batch):
        length = time if lengths is None else lengths[b]
        walk = list(reversed(range(length)) if reverse else range(length))
        marks = [False] * time if resets is None else resets[:, b].tolist()
        fresh = [number > 0 and marks[t + 1] if reverse else marks[t] for number, t in enumerate(walk)]
        past = [cell.State(*(field[b : b + 1] for field in given))]  # before each step, and after the last
        states = {}
        for end in range(k1, length + k1, k1):
            reach = max(0, end - k2)
            state = past[reach] if reach == 0 else cell.State(*(field.detach() for field in past[reach]))
            for number in range(reach, min(end, length)):
                state = cell(x[walk[number], b : b + 1], initial if fresh[number] else state)
                if number >= end - k1:
                    states[walk[number]] = state
                    past.append(state)
        columns.append([states.get(t) for t in range(time)])
        lasts.append(past[-1])
    fields = range(len(cell.State._fields))
    return cell.State(*(_grid(columns, field, initial, time) for field in fields)), cell.State(
        *(torch.cat([initial[field][:0], *(state[field] for state in lasts)]) for field in fields)
    )


def _grid(columns: list[list[Any]], field: int, initial: Any, time: int) -> Tensor:
    zero = torch.zeros_like(initial[field])
    grid = [
        torch.cat([zero if state is None else state[field] for state in column] or [zero[:0]]) for column in columns
    ]
    return torch.stack(grid, 1) if grid else zero.new_zeros(time, 0, zero.shape[-1])


def tree_twin(cell: Cell, trees: Sequence[Sequence[int]], x: Tensor, enters: Any) -> tuple[Any, Any]:
    """Each tree by itself, recursively: a node calls for its children's states, then calls the cell.

    Args:
        x: (nodes of all trees, features).
        enters: what the leaves of each tree read, fields (trees, size); with slots, in place of each missing child.

    Returns:
        The states of all nodes, fields (nodes, size), and of the roots, fields (trees, size).
    """
    nodes: list[Any] = []
    roots: list[Any] = []
    for number, tree in enumerate(trees):
        enter = cell.State(*(field[number : number + 1] for field in enters))
        done: dict[int, Any] = {}
        rows = x[len(nodes) : len(nodes) + len(tree)]
        roots.append(_node(cell, tree, tree.index(-1), rows, enter, done))
        nodes.extend(done[node] for node in range(len(tree)))
    together = (cell.State(*map(torch.cat, zip(*states, strict=True))) for states in (nodes, roots))
    return next(together), next(together)


def _node(cell: Cell, tree: Sequence[int], node: int, rows: Tensor, enter: Any, done: dict[int, Any]) -> Any:
    below = [_node(cell, tree, child, rows, enter, done) for child, parent in enumerate(tree) if parent == node]
    missing = (cell.slots or 1) - len(below)
    done[node] = node_twin(cell, rows[node : node + 1], [*below, *[enter] * missing])
    return done[node]


def node_twin(cell: Cell, x: Tensor, below: Sequence[Any]) -> Any:
    """The state of one node, fields (1, size), from its x (1, features) and its predecessors' states."""
    if cell.slots is not None:
        return cell(x, *below)
    predecessors = cell.State(*(torch.cat(field).unsqueeze(0) for field in zip(*below, strict=True)))
    with meaning_of_total(over_predecessors):
        new = cell(x.unsqueeze(0), predecessors)
    return cell.State(*(field.squeeze(0) for field in new))


def graph_twin(cell: Cell, graphs: Sequence[Sequence[Sequence[int]]], x: Tensor, enters: Any) -> tuple[Any, Any]:
    """`tree_twin` over graphs, given by the predecessors of each node (-1: none); what several read is computed once.

    Returns:
        The states of all nodes, and of the node of each graph that precedes none.
    """
    nodes: list[Any] = []
    ends: list[Any] = []
    for number, graph in enumerate(graphs):
        enter = cell.State(*(field[number : number + 1] for field in enters))
        rows = x[len(nodes) : len(nodes) + len(graph)]
        done: dict[int, Any] = {}

        def state(node: int, graph: Any = graph, enter: Any = enter, rows: Tensor = rows, done: Any = done) -> Any:
            if node not in done:
                read = [state(other, graph, enter, rows, done) for other in graph[node] if other >= 0] or [enter]
                done[node] = node_twin(cell, rows[node : node + 1], read)
            return done[node]

        nodes.extend(state(node) for node in range(len(graph)))
        used = {other for reads in graph for other in reads}
        ends += [done[node] for node in range(len(graph)) if node not in used]
    together = (cell.State(*map(torch.cat, zip(*states, strict=True))) for states in (nodes, ends))
    return next(together), next(together)


CORE: dict[str, Callable[[int, int], Cell]] = {  # what stands for all cells where a test is about something else
    "elman": Elman,
    "elman-relu": partial(Elman, nonlinearity="relu"),
    "gru": GRU,
    "gru-before": partial(GRU, reset="before"),
    "lstm": LSTM,
}

VARIANTS: dict[str, Callable[[int, int], Cell]] = {
    **CELLS,
    **CORE,
    **{f"jordan-{name}": partial(Jordan, output=name) for name in ("tanh", "sigmoid", "softmax")},
    "elman-jordan-sizes": partial(ElmanJordan, output_size=3, output="softmax"),
    "teacher-forced": lambda inputs, hidden: TeacherForced(Jordan(1, hidden, output_size=inputs - 1)),
    "leaky-alike": partial(Leaky, leak=0.2),
    "groups": partial(GroupedRNN, periods=(1, 2)),
    "groups-others": partial(GroupedRNN, periods=(2, 3)),
    "groups-uneven": partial(GroupedRNN, periods=(1, 2, 3)),
    "peephole-matrices": partial(PeepholeLSTM, peephole="matrices"),
    "projected-wider": partial(ProjectedLSTM, output_size=5),
    "slstm-exponential": partial(SLSTM, forget="exponential"),
    "gru-write": partial(GRU, update="write"),
    "gru-before-write": partial(GRU, reset="before", update="write"),
    "gru-no-bias": partial(GRU, bias=False),
    "multiplicative-rnn-factors": partial(MultiplicativeRNN, factors=3),
    "deep-1": partial(DeepTransition, depth=1),
    "deep-3": partial(DeepTransition, depth=3),
    "deep-no-shortcut": partial(DeepTransition, depth=3, shortcut=False),
    "deep-input": partial(DeepTransition, input_depth=2),
    "deep-output": partial(DeepTransition, output_depth=2),
    "highway-1": partial(RecurrentHighway, depth=1),
    "sru-peephole": partial(SRU, peephole=True),
    "sru-square": lambda inputs, _: SRU(inputs, inputs),
}


TREE_VARIANTS: dict[str, Callable[[int, int], Cell]] = {
    **TREE_CELLS,
    **{f"{name}-3": partial(TREE_CELLS[name], slots=3) for name in ("recursive", "tree-lstm", "tree-gru")},
    "recursive-identity": lambda _, hidden: RecursiveNet(hidden, hidden, project=False),
    "recursive-tensor-identity": lambda _, hidden: RecursiveTensorNet(hidden, hidden, project=False),
}


def random_state(cell: Cell, rows: int, dtype: torch.dtype = torch.float64) -> Any:
    """Fields (rows, size), each a leaf: clocks count steps down from their periods, and a normaliser is positive."""
    sizes = zip(cell.State._fields, cell.state_sizes, strict=True)
    state = {name: torch.randn(rows, size, dtype=dtype) for name, size in sizes}
    if isinstance(cell, GroupedRNN):
        state["clock"] = (torch.rand(rows, len(cell.periods)) * torch.tensor(cell.periods)).floor().to(dtype)
    if "n" in state:
        state["n"] = state["n"].abs() + 1
    return cell.State(*(field.requires_grad_() for field in state.values()))


TORCH_LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN}
TORCH_CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "elman": nn.RNNCell}


@torch.no_grad()
def copy_from_torch(cell: Cell, layer: nn.Module, suffix: str = "") -> dict[str, Tensor]:
    """Copies the weights of one layer and direction of a `torch.nn` module into a cell.

    torch has two biases where a cell has one; the second is set to zero, but for the GRU's n part, which is its `d`.

    Args:
        suffix: "_l0", "_l1_reverse" and so on; "" for torch's cells.

    Returns:
        For the name of each parameter of the cell the torch parameter that it corresponds to.
    """
    w, u, b, second = (getattr(layer, f"{kind}{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    names = {"W.weight": w, "W.bias": b, "U.weight": u}
    if isinstance(cell, GRU):
        second[: 2 * cell.hidden_size] = 0
        cell.d.copy_(second[2 * cell.hidden_size :])
        names["d"] = second
    else:
        assert isinstance(cell, (LSTM, Elman))
        second.zero_()
    cell.W.weight.copy_(w)
    cell.W.bias.copy_(b)
    cell.U.weight.copy_(u)
    return names
