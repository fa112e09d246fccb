"""Trees on the compiled executor, beside the reference executor; and compositions over them, beside the recursion."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import TREE_ORACLES, over_tree
from torch import Tensor, nn
from twins import TREE_VARIANTS, VARIANTS, random_state, tree_twin

import ritornello as rit
from ritornello.cells import Cell, find
from ritornello.errors import ArgumentError, CellError
from ritornello.nn import Residual, Stack
from ritornello.structures import Forest, Graphs

F64 = torch.float64
SUMMING = [
    *("elman", "irnn", "jordan", "elman-jordan", "leaky", "additive", "lstm", "lstm-1997", "gru", "gru-before"),
    *("multiplicative-rnn", "deep", "highway", "min-gru", "min-lstm", "lru", "rg-lru"),
]


def random_tree(nodes: int, generator: random.Random, most_children: int = 10**6) -> list[int]:
    """Parents, of any shape: children near their parents, or far."""
    near = generator.choice([1, 3, nodes])
    parents, left = [-1], [most_children]
    for node in range(1, nodes):
        able = [parent for parent in range(max(0, node - near), node) if left[parent]]
        parents.append(generator.choice(able or [parent for parent in range(node) if left[parent]]))
        left[parents[node]] -= 1
        left.append(most_children)
    order = list(range(nodes))
    generator.shuffle(order)  # the root need not come first
    shuffled = [-1] * nodes
    for node, parent in enumerate(parents):
        shuffled[order[node]] = -1 if parent < 0 else order[parent]
    return shuffled


def random_forest(trees: int, most: int, seed: int, most_children: int = 10**6) -> list[list[int]]:
    generator = random.Random(seed)
    return [random_tree(generator.randint(1, most), generator, most_children) for _ in range(trees)]


def answer(
    cell: Cell, trees: Any, x: Tensor, executor: str, state: Any = None, inputs: str = "nodes", **options: Any
) -> tuple[Any, Any]:
    """All states and the roots', and the gradients of everything."""
    unfold = rit.Unfold(cell, executor=executor, **options).to(x.dtype)
    leaf = x.detach().clone().requires_grad_()
    given = None if state is None else cell.State(*(field.detach().clone().requires_grad_() for field in state))
    nodes, roots = unfold.over(trees, leaf, given, inputs=inputs, all_states=True)
    leaves = {"x": leaf, **dict(unfold.named_parameters()), **({} if given is None else given._asdict())}
    return (*nodes, *roots), gradients((*nodes, *roots), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("variant", SUMMING)
def test_every_summing_cell_over_a_random_forest(variant: str, dtype: torch.dtype) -> None:
    cell = VARIANTS[variant](3, 4).to(dtype)
    trees = random_forest(6, 14, seed=1)
    x = torch.randn(sum(map(len, trees)), 3, dtype=dtype)
    given = random_state(cell, len(trees), dtype)
    for state, learn in ((None, False), (None, True), (given, False)):
        found = answer(cell, trees, x, "cpu", state, learn_initial=learn)
        assert_close(found, answer(cell, trees, x, "reference", state, learn_initial=learn))


@given(st.integers(0, 10**6), st.integers(0, 12), st.integers(1, 40), st.sampled_from(["lstm", "gru-before", "deep"]))
@settings(max_examples=60)
def test_random_forests(seed: int, count: int, most: int, variant: str) -> None:
    torch.manual_seed(seed)
    cell = VARIANTS[variant](2, 3).to(F64)
    trees = random_forest(count, most, seed)
    x = torch.randn(sum(map(len, trees)), 2, dtype=F64)
    assert_close(answer(cell, trees, x, "cpu"), answer(cell, trees, x, "reference"))


@pytest.mark.parametrize("variant", ["lstm", "gru-before", "recursive-3", "tree-lstm", "tree-gru"])
def test_ten_thousand_random_forests_beside_the_recursion(variant: str) -> None:
    """Two thousand of each cell; all states of all, every tenth one's gradients."""
    cell = (TREE_VARIANTS | VARIANTS)[variant](2, 3).to(F64)
    unfold, parameters = rit.Unfold(cell, executor="cpu"), list(cell.parameters())
    for seed in range(2000):
        trees = random_forest(1 + seed % 3, 1 + seed % 9, seed, cell.slots or 4)
        x = torch.randn(sum(map(len, trees)), 2, dtype=F64, requires_grad=True)
        nodes, _ = unfold.over(trees, x, all_states=True)
        expected, _ = tree_twin(cell, trees, x, cell.zero_state(len(trees), x))
        assert_close(nodes, expected, f"seed {seed}")
        if seed % 10 == 0:
            forms = [sum((field.square() * (k + 1)).sum() for k, field in enumerate(f)) for f in (nodes, expected)]
            found, wanted = (torch.autograd.grad(f, [x, *parameters], materialize_grads=True) for f in forms)
            assert_close(found, wanted, f"seed {seed}")


def test_the_same_bits_for_any_number_of_threads() -> None:
    cell, trees = rit.LSTM(5, 33), random_forest(23, 60, seed=2)
    x = torch.randn(sum(map(len, trees)), 5)
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        try:
            found.append(answer(cell, trees, x, "cpu"))
        finally:
            torch.set_num_threads(1)
    for states, grads in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(states, found[0][0], strict=True))
        assert all(torch.equal(grads[name], found[0][1][name]) for name in grads)


@pytest.mark.parametrize("variant", ["lstm", "gru", "elman"])
def test_a_chain_written_as_a_tree_gives_the_chain_s_values_to_the_bit(variant: str) -> None:
    cell, time = VARIANTS[variant](3, 4).to(F64), 9
    x = torch.randn(time, 2, 3, dtype=F64)
    unfold = rit.Unfold(cell, executor="cpu")
    outputs, last = unfold(x)
    chain = [*range(1, time), -1]
    # a second child turns it into a tree for the machine: a lone leaf beside, in a tree of its own
    fork = [2, 2, -1]
    rows = torch.cat([x[:, 0], x[:, 1], torch.randn(3, 3, dtype=F64)])
    nodes, roots = unfold.over([chain, chain, fork], rows)
    assert torch.equal(nodes[: 2 * time].view(2, time, -1).transpose(0, 1), outputs)
    assert all(torch.equal(root[:2], field) for root, field in zip(roots, last, strict=True))


def test_second_gradients() -> None:
    cell, trees = rit.LSTM(2, 3).to(F64), [[2, 2, -1], [-1], [1, 4, 4, 4, -1]]
    x = torch.randn(9, 2, dtype=F64, requires_grad=True)
    leaves, found = [x, *cell.parameters()], {}
    for executor in ("cpu", "reference"):
        outputs, _ = rit.Unfold(cell, executor=executor).over(trees, x)
        once = torch.autograd.grad(outputs.square().sum(), leaves, retain_graph=True)
        assert_close(torch.autograd.grad(outputs.square().sum(), leaves, create_graph=True), once)
        (first,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        found[executor] = torch.autograd.grad(first.square().sum(), [x, *cell.parameters()])
    assert_close(*found.values())


def test_without_gradients_and_twice_backwards() -> None:
    cell, trees = rit.GRU(2, 3), random_forest(4, 9, seed=3)
    x = torch.randn(sum(map(len, trees)), 2, requires_grad=True)
    unfold = rit.Unfold(cell, executor="cpu")
    with torch.no_grad():
        expected, _ = unfold.over(trees, x)
    outputs, _ = unfold.over(trees, x)
    assert torch.equal(outputs, expected)
    outputs.sum().backward(retain_graph=True)
    first = x.grad.clone()
    outputs.sum().backward()
    assert_close(x.grad, 2 * first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["lstm", "tree-lstm"])
def test_half_precision(variant: str, dtype: torch.dtype) -> None:
    cell, trees = find(variant)(4, 8), random_forest(5, 12, seed=4, most_children=2)
    x = torch.randn(sum(map(len, trees)), 4)
    exact, _ = rit.Unfold(cell).over(trees, x)
    found, _ = rit.Unfold(cell.to(dtype), executor="cpu").over(trees, x.to(dtype))
    assert found.dtype == dtype
    assert_close(found.bfloat16(), exact)


def test_what_is_dropped_is_drawn_for_each_node() -> None:
    class Dropping(rit.Elman):
        def forward(self, x: Tensor, s: Any) -> Any:
            return super().forward(torch.nn.functional.dropout(x, 0.5, self.training), s)

    cell, trees = Dropping(3, 4), random_forest(3, 30, seed=5)
    x = torch.ones(sum(map(len, trees)), 3)
    unfold = rit.Unfold(cell, executor="cpu")
    one, other = (unfold.over(trees, x)[0] for _ in range(2))
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) > 5


DRAWS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], set[float]]] = {
    "of their own": (lambda x, h: F.dropout(h, 0.5), {0.0, 2.0, 4.0}),
    "like theirs": (lambda x, h: h * torch.bernoulli(torch.full_like(h, 0.5)), {0.0, 1.0, 2.0}),
    "of the row": (lambda x, h: h * torch.bernoulli(torch.full_like(x, 0.5)), {0.0, 2.0}),
    "of the total": (lambda x, h: F.dropout(rit.total(h), 0.5), {0.0, 4.0}),
    "of a shape": (lambda x, h: h * (torch.rand(h.shape) < 0.5), {0.0, 1.0, 2.0}),
}


@pytest.mark.parametrize("what", DRAWS)
def test_predecessors_share_the_random_numbers_that_the_cell_draws_once(what: str) -> None:
    draw, sums = DRAWS[what]

    class Drawing(rit.Cell):
        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(rit.total(draw(x, s.h)) + x)

    x = torch.tensor([[1.0], [1.0], [0.0]]).repeat(1, 200)
    for executor in ("auto", "reference"):
        outputs, _ = rit.Unfold(Drawing(200, 200), executor=executor).over([[2, 2, -1]], x)
        assert set(outputs[2].tolist()) == sums
    if what == "of a shape":
        with pytest.raises(
            ArgumentError, match="whether each of 2 predecessors draws random numbers of its own is not"
        ):
            rit.Unfold(Drawing(200, 200), executor="cpu").over([[2, 2, -1]], x)


def test_more_predecessors_than_the_machine_takes_go_by_the_reference() -> None:
    cell, star = rit.LSTM(2, 3), [[17] * 17 + [-1]]
    x = torch.randn(18, 2)
    with pytest.raises(ArgumentError, match="a row has 17 predecessors; the compiled machine takes 16"):
        rit.Unfold(cell, executor="cpu").over(star, x)
    assert rit.Unfold(cell).over(star, x)[0].shape == (18, 3)
    said = io.StringIO()
    rit.explain(rit.cells.TreeLSTM(2, 3, slots=17), said)
    assert "executor: reference, for a row has 17 predecessors; the compiled machine takes 16" in said.getvalue()


@pytest.mark.parametrize(("fields", "most"), [(3, 16), (4, 13), (16, 2)])
def test_of_states_with_many_fields_the_machine_takes_fewer_predecessors(fields: int, most: int) -> None:
    class Wide(rit.Cell):
        State = rit.cells.cell.state_type(*(f"field{k}" for k in range(fields)))

        def forward(self, x: Tensor, s: Any) -> Any:
            return self.State(*(torch.tanh(x + rit.total(field)) for field in s))

    class Apart(Wide):
        slots = most + 1

        def forward(self, x: Tensor, *children: Any) -> Any:
            return super().forward(x, self.State(*map(sum, zip(*children, strict=True))))

    cell, reason = Wide(3, 3).double(), f"a row has {most + 1} predecessors; the compiled machine takes {most}"
    for count in (most, most + 1):
        star, x = [[count] * count + [-1]], torch.randn(count + 1, 3, dtype=F64)
        assert_close(answer(cell, star, x, "auto"), answer(cell, star, x, "reference"))
    for each in (cell, Apart(3, 3).double()):
        with pytest.raises(ArgumentError, match=reason):
            answer(each, star, x, "cpu")
    answer(cell, [[most] * most + [-1]], x[:-1], "cpu")


def test_a_cell_for_chains_is_told_by_the_reference() -> None:
    with pytest.raises(CellError, match="is a cell for chains"):
        rit.Unfold(rit.cells.PeepholeLSTM(2, 3)).over([[2, 2, -1]], torch.randn(3, 2))


# Cells that tell their children apart.


def tree_cell(variant: str, dtype: torch.dtype = F64) -> Cell:
    return TREE_VARIANTS[variant](3, 4).to(dtype)


def with_input(trees: Forest, inputs: str) -> Any:
    """The nodes that have an x."""
    return {"nodes": slice(None), "leaves": trees.leaves, "inner": (trees.heights > 0).nonzero()[0]}[inputs]


def test_every_tree_cell_has_an_oracle() -> None:
    assert set(TREE_ORACLES) == set(TREE_VARIANTS), "a cell of TREE_CELLS needs its paper's equations in oracles.py"


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("inputs", ["nodes", "leaves", "inner"])
@pytest.mark.parametrize("variant", TREE_VARIANTS)
def test_a_tree_cell_is_its_equations_at_every_node(variant: str, inputs: str, executor: str) -> None:
    """Some children missing, some trees of one leaf; x is zero where a node has none."""
    cell = tree_cell(variant)
    parents = [*random_forest(8, 12, seed=6, most_children=cell.slots or 0), [-1]]
    trees = Forest.from_parents(parents)
    x = torch.zeros(trees.nodes, cell.input_size, dtype=F64)
    chosen = with_input(trees, inputs)
    x[chosen] = torch.randn_like(x[chosen])
    expected: list[Any] = []
    for tree, start in zip(parents, trees.starts, strict=True):
        expected += over_tree(TREE_ORACLES[variant], cell, tree, x[start : start + len(tree)].numpy())
    nodes, roots = rit.Unfold(cell, executor=executor).over(trees, x[chosen], inputs=inputs, all_states=True)
    for number, field in enumerate(nodes):
        assert_close(field, np.stack([state[number] for state in expected]))
        assert_close(roots[number], field[trees.roots])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("inputs", ["nodes", "leaves", "inner"])
@pytest.mark.parametrize("variant", [*TREE_VARIANTS, "lstm", "gru-before"])
def test_gradients_where_children_are_told_apart_or_inputs_missing(
    variant: str, inputs: str, dtype: torch.dtype
) -> None:
    cell = (TREE_VARIANTS | VARIANTS)[variant](3, 4).to(dtype)
    trees = Forest.from_parents(random_forest(7, 15, seed=7, most_children=cell.slots or 3))
    x = torch.randn(len(np.arange(trees.nodes)[with_input(trees, inputs)]), cell.input_size, dtype=dtype)
    given = random_state(cell, len(trees), dtype)
    for state, learn in ((None, False), (None, True), (given, True)):
        found = answer(cell, trees, x, "cpu", state, inputs, learn_initial=learn)
        assert_close(found, answer(cell, trees, x, "reference", state, inputs, learn_initial=learn))


@pytest.mark.parametrize("executor", ["cpu", "reference"])
@pytest.mark.parametrize("variant", [*TREE_VARIANTS, "lstm", "gru-before"])
def test_gradients_are_finite_differences(variant: str, executor: str) -> None:
    cell = (TREE_VARIANTS | VARIANTS)[variant](3, 4).to(F64)
    unfold, trees = rit.Unfold(cell, executor=executor), [[4, 4, 3, 4, -1], [-1], [1, -1]]
    if cell.slots is not None and cell.slots < 3:
        trees = [[3, 3, 4, 4, -1], [-1], [1, -1]]
    leaves = Forest.from_parents(trees).leaves
    x = torch.randn(len(leaves), cell.input_size, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: unfold.over(trees, x, inputs="leaves")[0], (x, *cell.parameters()))


@pytest.mark.parametrize("variant", ["tree-lstm", "recursive-tensor-identity"])
def test_second_gradients_where_children_are_told_apart(variant: str) -> None:
    cell, trees = tree_cell(variant), [[2, 2, -1], [-1], [1, 4, 4, 1, -1]]
    x = torch.randn(6, cell.input_size, dtype=F64, requires_grad=True)
    found = {}
    for executor in ("cpu", "reference"):
        outputs, _ = rit.Unfold(cell, executor=executor).over(trees, x, inputs="leaves")
        (first,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
        found[executor] = torch.autograd.grad(first.square().sum(), [x, *cell.parameters()])
    assert_close(*found.values())


@pytest.mark.parametrize("variant", [*TREE_VARIANTS, "lstm", "gru-before", "elman"])
def test_the_order_of_children_matters_where_they_are_told_apart_and_else_not(variant: str) -> None:
    cell = (TREE_VARIANTS | VARIANTS)[variant](3, 4).to(F64)
    unfold, x = rit.Unfold(cell), torch.randn(3, cell.input_size, dtype=F64)
    one, other = (unfold.over([[2, 2, -1]], x[order])[1][0] for order in ([0, 1, 2], [1, 0, 2]))
    if cell.slots is None:
        assert_close(one, other)
    else:
        assert float((one - other).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("executor", ["cpu", "reference"])
def test_a_tree_gru_with_enormous_weights_gives_numbers(executor: str) -> None:
    cell = rit.cells.TreeGRU(3, 4)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(2000)
    outputs, _ = rit.Unfold(cell, executor=executor).over([[2, 2, -1], [-1]], torch.randn(4, 3))
    assert outputs.isfinite().all()


def test_slots_may_be_left_empty() -> None:
    cell, x = tree_cell("tree-lstm"), torch.randn(2, 3, dtype=F64)
    left, right = (
        rit.Unfold(cell).over(Forest.from_parents([[1, -1]], slots=[[slot, 0]]), x, all_states=True)[1]
        for slot in (0, 1)
    )
    (leaf,) = over_tree(TREE_ORACLES["tree-lstm"], cell, [-1], x[:1].numpy())
    below = [np.stack([field, np.zeros(4)]) for field in leaf]
    assert_close([field[0] for field in left], TREE_ORACLES["tree-lstm"](cell, x[1].numpy(), *below))
    assert_close(
        [field[0] for field in right], TREE_ORACLES["tree-lstm"](cell, x[1].numpy(), *(f[::-1] for f in below))
    )


def test_a_child_that_is_missing_is_the_initial_state() -> None:
    cell, x = tree_cell("tree-lstm"), torch.randn(2, 3, dtype=F64)
    unfold = rit.Unfold(cell, learn_initial=True).to(F64)
    for field in unfold.initial:
        nn.init.normal_(field)
    _, root = unfold.over([[1, -1]], x)
    first = cell.State(*(field.to(F64) for field in unfold.initial))
    leaf = cell(x[:1], first, first)
    assert_close(root, cell(x[1:], leaf, first))
    root.h.sum().backward()
    assert all(float(field.grad.abs().sum()) > 0 for field in unfold.initial)


def test_a_first_state_that_is_zero_now_and_learnt_gets_its_gradient() -> None:
    class Learnt(rit.Elman):
        def __init__(self) -> None:
            super().__init__(2, 3)
            self.first = nn.Parameter(torch.zeros(1, 3))

        def zero_state(self, rows: int, like: Tensor) -> Any:
            return self.State(self.first.expand(rows, -1))

    cell, x = Learnt(), torch.randn(3, 2)
    found = {executor: answer(cell, [[2, 2, -1]], x, executor) for executor in ("cpu", "reference")}
    assert_close(found["cpu"], found["reference"])
    assert float(found["cpu"][1]["cell.first"].abs().sum()) > 0


def test_acyclic_graphs() -> None:
    diamonds = Graphs.from_predecessors([[[], [0], [0], [1, 2]], [[]], [[], [0], [1, 0]]])
    for variant in ("lstm", "tree-lstm"):
        cell = (TREE_VARIANTS | VARIANTS)[variant](3, 4).to(F64)
        for inputs, rows in (("nodes", 8), ("leaves", 3), ("inner", 5)):
            x = torch.randn(rows, 3, dtype=F64)
            assert_close(*(answer(cell, diamonds, x, executor, inputs=inputs) for executor in ("cpu", "reference")))


@pytest.mark.parametrize("variant", ["tree-lstm", "lstm"])
def test_a_comb_of_100_000_nodes_and_10_000_trees_of_one_leaf(variant: str) -> None:
    """No recursion: what is deep overflows no stack."""
    cell, depth = (TREE_VARIANTS | VARIANTS)[variant](2, 3), 50_000
    spine = np.arange(depth)  # node k of the spine has the one before it and a leaf below it
    comb = np.concatenate([spine[1:], [-1], spine])
    for trees, leaves in ((Forest.from_parents([comb]), depth), (Forest.from_parents([[-1]] * 10_000), 10_000)):
        x = torch.randn(leaves, 2, requires_grad=True)
        nodes, roots = rit.Unfold(cell, executor="cpu").over(trees, x, inputs="leaves")
        nodes.sum().backward()
        assert nodes.isfinite().all()
        assert x.grad.abs().sum(1).all()
        assert len(roots.h) == len(trees)


def test_messages_of_trees() -> None:
    cell = tree_cell("tree-lstm", torch.float32)
    unfold, x = rit.Unfold(cell), torch.randn(4, 3)
    with pytest.raises(ArgumentError, match="Tree 0: node 3 has 3 children, one in slot 2; the cell has 2 slots"):
        unfold.over([[3, 3, 3, -1]], x)
    with pytest.raises(CellError, match=r"TreeLSTM tells 2 children apart, a chain has none: unfold it with \.over"):
        unfold(torch.randn(5, 2, 3))
    with pytest.raises(CellError, match="TreeLSTM tells 2 children apart"):
        unfold.stepper()
    with pytest.raises(ArgumentError, match=r"x has shape \(4, 3\); expected \(2, 3\): a row for each of the 2 leaves"):
        unfold.over([[2, 2, -1]], x, inputs="leaves")
    with pytest.raises(ArgumentError, match=r"\(1, 3\): a row for each of the 1 inner nodes"):
        unfold.over([[2, 2, -1]], x, inputs="inner")
    with pytest.raises(ArgumentError, match="inputs is 'leafs': did you mean leaves"):
        unfold.over([[2, 2, -1]], x, inputs="leafs")
    with pytest.raises(ArgumentError, match="TreeLSTM: slots must be 2 or more, not 1: a cell with one child"):
        rit.cells.TreeLSTM(3, 4, slots=1)
    with pytest.raises(ArgumentError, match="input_size=3 and hidden_size=4 must be the same"):
        rit.cells.RecursiveNet(3, 4, project=False)


def by_layers(stack: Stack, trees: list[list[int]], x: Tensor, given: Any) -> tuple[Tensor, Any]:
    """Each layer's own recursion, one after the other. x: of all nodes."""
    reads, outputs, roots = x, [], []
    for layer, enters in zip(stack.layers, given, strict=True):
        unfold: Any = layer.layer if isinstance(layer, Residual) else layer
        states, last = tree_twin(unfold.cell, trees, reads, enters)
        outputs.append(states[0] + reads if isinstance(layer, Residual) else states[0])
        roots.append(last)
        reads = torch.cat([x, outputs[-1]], -1) if stack.skip else outputs[-1]
    return torch.cat(outputs, -1) if stack.skip else outputs[-1], tuple(roots)


@pytest.mark.parametrize("inputs", ["nodes", "leaves", "inner"])
@pytest.mark.parametrize("shape", [{}, {"residual": True}, {"skip": True}])
@pytest.mark.parametrize("cell", [rit.LSTM, rit.cells.TreeLSTM, (rit.cells.TreeGRU, rit.LSTM, rit.cells.TreeLSTM)])
@pytest.mark.parametrize("enter", [False, True])
def test_layers_over_trees_are_each_its_own_recursion(enter: bool, cell: Any, shape: Any, inputs: str) -> None:
    trees = [[2, 2, -1], [-1], [-1, 0, 0, 1, 1], [6, 6, 5, 5, -1, 4, 4]]  # no child is missing
    batch = Forest.from_parents(trees)
    stack = Stack.of(cell, 4, 4, layers=3, **shape).to(F64)
    x = torch.randn(len(batch.given(inputs)), 4, dtype=F64, requires_grad=True)
    wide = torch.zeros(batch.nodes, 4, dtype=F64).index_copy(0, torch.from_numpy(batch.given(inputs)), x)
    cells = [(layer.layer if isinstance(layer, Residual) else layer).cell for layer in stack.layers]
    blank = [each.State(*(torch.zeros(len(trees), n, dtype=F64) for n in each.state_sizes)) for each in cells]
    state = [random_state(each, len(trees), F64) for each in cells] if enter else None
    found = stack.over(trees, x, state, inputs=inputs)
    expected = by_layers(stack, trees, wide, state or blank)
    assert_close(found, expected)
    leaves = [x, *stack.parameters()]
    named = {str(number): leaf for number, leaf in enumerate(leaves)}
    assert_close(gradients(found, named), gradients(expected, named), "gradient")
    assert torch.equal(stack.over(batch, x, state, inputs=inputs)[0], found[0])


def test_layers_over_a_graph() -> None:
    diamond = Graphs.from_predecessors([[[], [0], [0], [1, 2]]])
    stack, x = Stack.of(rit.LSTM, 3, 4, layers=2), torch.randn(4, 3)
    below = stack.layers[0].over(diamond, x)[0]
    assert torch.equal(stack.over(diamond, x)[0], stack.layers[1].over(diamond, below)[0])


def test_dropout_between_layers_over_trees() -> None:
    trees, x = [[2, 2, -1]] * 100, torch.randn(300, 5)
    stack = Stack.of(rit.LSTM, 5, 6, layers=2, dropout=0.5)
    torch.manual_seed(1)
    found = stack.over(trees, x)[0]
    torch.manual_seed(1)
    below = rit.nn.Dropout(0.5)(stack.layers[0].over(trees, x)[0])
    assert 0.4 < float((below == 0).float().mean()) < 0.6
    assert torch.equal(found, stack.layers[1].over(trees, below)[0])
    below = stack.eval().layers[0].over(trees, x)[0]
    assert torch.equal(stack.over(trees, x)[0], stack.layers[1].over(trees, below)[0])


@pytest.mark.parametrize("layers", [1, 2])
def test_dropped_weights_over_trees_are_one_draw(layers: int) -> None:
    trees, x = [[2, 2, -1], [-1, 0]], torch.randn(5, 3)
    plain = Stack.of(rit.LSTM, 3, 4, layers=layers)
    layer = rit.nn.WeightDrop(plain, share=0.5)
    torch.manual_seed(1)
    found, roots = layer.over(trees, x)
    sum(field.sum() for state in roots for field in state).backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
    torch.manual_seed(1)
    with torch.no_grad():
        for each in plain.layers:
            each.cell.U.weight.copy_(F.dropout(each.cell.U.weight, 0.5))
    assert torch.equal(found, plain.over(trees, x)[0])
    assert torch.equal(layer.eval().over(trees, x)[0], plain.over(trees, x)[0])


def test_layers_for_sequences_alone_are_told() -> None:
    trees, x = [[1, -1]], torch.randn(2, 4)
    both = rit.nn.Bidirectional(rit.GRU(4, 2), rit.GRU(4, 2))
    with pytest.raises(ArgumentError, match=r"^Stack\.over: a Bidirectional walks sequences only; over trees"):
        Stack([both]).over(trees, x)
    with pytest.raises(ArgumentError, match=r"^Residual\.over: a Bidirectional walks sequences only"):
        Residual(both).over(trees, x)
    with pytest.raises(ArgumentError, match=r"^WeightDrop\.over: a Bidirectional walks sequences only"):
        rit.nn.WeightDrop(both).over(trees, x)
    with pytest.raises(ArgumentError, match="Stack: state must be a tuple of 1 states, not 2 states"):
        Stack.of(rit.LSTM, 4, 4).over(trees, x, (None, None))
    with pytest.raises(ArgumentError, match=r"^Network\.over: a Bidirectional walks sequences only"):
        rit.nn.Network(both).over(trees, x)


@pytest.mark.parametrize("inputs", ["nodes", "leaves", "inner"])
def test_a_network_reads_every_node_the_roots_or_their_states(inputs: str) -> None:
    trees = [[2, 2, -1], [-1], [-1, 0, 0, 1, 1]]
    batch, layer = Forest.from_parents(trees), Stack.of(rit.LSTM, 3, 4, layers=2)
    words = torch.randint(9, (len(batch.given(inputs)),))
    encode, decode = nn.Embedding(9, 3), nn.Linear(4, 2)
    outputs, roots = layer.over(trees, encode(words), inputs=inputs)
    found, last = rit.nn.Network(layer, encode=encode, decode=decode).over(trees, words, inputs=inputs)
    assert torch.equal(found, decode(outputs))
    assert torch.equal(last[1].c, roots[1].c)
    acceptor = rit.nn.Network(layer, encode=encode, decode=decode, reads="acceptor")
    assert_close(acceptor.over(batch, words, inputs=inputs)[0], decode(roots[1].h))
    encoder = rit.nn.Network(layer, encode=encode, reads="encoder")
    every = torch.cat([field for state in roots for field in state], -1)
    assert torch.equal(encoder.over(batch, words, inputs=inputs)[0], every)
    assert every.shape == (3, 16)


@pytest.mark.parametrize("inputs", ["nodes", "leaves", "inner"])
@pytest.mark.parametrize("into", ["both", "state", "steps"])
def test_a_context_of_each_tree_enters_at_all_of_its_nodes(into: str, inputs: str) -> None:
    trees = [[2, 2, -1], [-1], [-1, 0, 0, 1, 1]]
    batch, cell = Forest.from_parents(trees), rit.LSTM(3 + 2 * (into != "state"), 4).to(F64)
    layer = rit.nn.Context(rit.Unfold(cell), 2, into=into).to(F64)
    x, context = torch.randn(len(batch.given(inputs)), 3, dtype=F64), torch.randn(3, 2, dtype=F64)
    found = layer.over(trees, x, context=context, inputs=inputs)
    wide = torch.zeros(batch.nodes, 3, dtype=F64).index_copy(0, torch.from_numpy(batch.given(inputs)), x)
    if into != "state":
        wide = torch.cat([wide, torch.stack([context[tree] for tree in (0, 0, 0, 1, 2, 2, 2, 2, 2)])], -1)
    first = cell.State(*(torch.zeros(3, 4, dtype=F64) for _ in range(2)))
    if layer.to_state is not None:
        first = cell.State(*torch.tanh(context @ layer.to_state.weight.T + layer.to_state.bias).chunk(2, -1))
    states, roots = tree_twin(cell, trees, wide, first)
    assert_close(found, (states.h, roots))
    with pytest.raises(ArgumentError, match=r"context must be a tensor of shape \(3, 2\), not \(2,\)"):
        layer.over(trees, x, context=context[0], inputs=inputs)
    with pytest.raises(
        ArgumentError, match=rf"x has shape \({len(x) + 1}, 3\); expected \({len(x)}, 3\): a row for each"
    ):
        layer.over(trees, x.new_zeros(len(x) + 1, 3), context=context, inputs=inputs)
    given = [cell.State(*(torch.randn(3, 4, dtype=F64) for _ in range(2)))]
    states, _ = tree_twin(cell, trees, wide, given[0])
    assert_close(layer.over(trees, x, given[0], context=context, inputs=inputs)[0], states.h)
