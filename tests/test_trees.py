"""Trees on the compiled executor, beside the reference executor: values, gradients, second gradients, the same bits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from comparison import assert_close, gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from twins import VARIANTS, random_state

import ritornello as rit
from ritornello.cells import Cell
from ritornello.errors import ArgumentError, CellError

F64 = torch.float64
SUMMING = [
    *("elman", "irnn", "jordan", "elman-jordan", "leaky", "additive", "lstm", "lstm-1997", "gru", "gru-before"),
    *("multiplicative-rnn", "deep", "highway", "min-gru", "min-lstm", "lru", "rg-lru"),
]


def random_tree(nodes: int, generator: random.Random) -> list[int]:
    """Parents, of any shape: children near their parents, or far."""
    near = generator.choice([1, 3, nodes])
    parents = [-1] + [generator.randrange(max(0, node - near), node) for node in range(1, nodes)]
    order = list(range(nodes))
    generator.shuffle(order)  # the root need not come first
    shuffled = [-1] * nodes
    for node, parent in enumerate(parents):
        shuffled[order[node]] = -1 if parent < 0 else order[parent]
    return shuffled


def random_forest(trees: int, most: int, seed: int) -> list[list[int]]:
    generator = random.Random(seed)
    return [random_tree(generator.randint(1, most), generator) for _ in range(trees)]


def answer(cell: Cell, trees: Any, x: Tensor, executor: str, state: Any = None, **options: Any) -> tuple[Any, Any]:
    """All states and the roots', and the gradients of everything."""
    unfold = rit.Unfold(cell, executor=executor, **options).to(x.dtype)
    leaf = x.detach().clone().requires_grad_()
    given = None if state is None else cell.State(*(field.detach().clone().requires_grad_() for field in state))
    nodes, roots = unfold.over(trees, leaf, given, all_states=True)
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
    found = {}
    for executor in ("cpu", "reference"):
        outputs, _ = rit.Unfold(cell, executor=executor).over(trees, x)
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
def test_half_precision(dtype: torch.dtype) -> None:
    cell, trees = rit.LSTM(4, 8), random_forest(5, 12, seed=4)
    x = torch.randn(sum(map(len, trees)), 4)
    exact, _ = rit.Unfold(cell).over(trees, x)
    found, _ = rit.Unfold(cell.to(dtype), executor="cpu").over(trees, x.to(dtype))
    assert found.dtype == dtype
    assert float((found.float() - exact).detach().abs().max()) < 0.02


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


def test_more_predecessors_than_the_machine_takes_go_by_the_reference() -> None:
    cell, star = rit.LSTM(2, 3), [[17] * 17 + [-1]]
    x = torch.randn(18, 2)
    with pytest.raises(ArgumentError, match="a row has 17 predecessors; the compiled machine takes 16"):
        rit.Unfold(cell, executor="cpu").over(star, x)
    assert rit.Unfold(cell).over(star, x)[0].shape == (18, 3)


def test_a_cell_for_chains_is_told_by_the_reference() -> None:
    with pytest.raises(CellError, match="is a cell for chains"):
        rit.Unfold(rit.cells.PeepholeLSTM(2, 3)).over([[2, 2, -1]], torch.randn(3, 2))
