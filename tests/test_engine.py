"""The engine: against a cell whose answer has a closed form, the naive twins, and torch.nn's recurrent layers."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from comparison import assert_close, gradients
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_structures import Batch, batches, graphs, trees
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from twins import CORE, TORCH_LAYERS, chain_twin, copy_from_torch, graph_twin, segments, tree_twin

import ritornello as rit
from ritornello import executors
from ritornello.cells import CELLS, Cell, total
from ritornello.errors import ArgumentError, CellError
from ritornello.executors import EXECUTORS
from ritornello.structures import Forest, Graphs

F64 = torch.float64
POISON = float("nan")


class Counting(Cell):
    """Counts the rows it stands on, and reads the x of all of them as the digits of a binary number."""

    State = namedtuple("State", "number count")

    @property
    def state_sizes(self) -> tuple[int, ...]:
        return self.input_size, 1

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(2 * total(s.number) + x, total(s.count) + 1)


class ChainOnly(Cell):
    """Says `total` nowhere, and keeps its predecessors apart."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(self.W(x) + self.U(s.h)))


class ChainOnlyConcatenated(ChainOnly):
    """Says `total` nowhere, and fails in the midst of its equations."""

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.State(torch.tanh(torch.cat([self.W(x), s.h], -1)[..., -self.hidden_size :]))


@pytest.fixture(scope="session", params=CORE)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


def random_state(cell: Cell, rows: int, dtype: torch.dtype = F64) -> Any:
    return cell.State(*(torch.randn(rows, size, dtype=dtype).requires_grad_() for size in cell.state_sizes))


def unfolding(variant: str, input_size: int = 2, hidden_size: int = 3, **options: Any) -> rit.Unfold:
    """In float64, with an initial state, where it is learnt, that is not zero."""
    unfold = rit.Unfold(CORE[variant](input_size, hidden_size), **options).to(F64)
    for field in unfold.initial or ():
        nn.init.normal_(field)
    return unfold


def initial_state(unfold: rit.Unfold) -> Any:
    """What the unfolding's sequences begin with, one row."""
    sizes = unfold.cell.state_sizes
    return unfold.cell.State(*(unfold.initial or (torch.zeros(1, size, dtype=F64) for size in sizes)))


def padding(time: int, batch: int, lengths: list[int] | None) -> Tensor:
    """(time, batch): True beyond each sequence's end."""
    beyond = torch.zeros(time, batch, dtype=torch.bool)
    for b, length in enumerate(lengths or []):
        beyond[length:, b] = True
    return beyond


# The counting cell: closed forms.


@pytest.mark.parametrize("reverse", [False, True])
def test_counting_a_dense_batch(reverse: bool) -> None:
    """The count at step t is t + 1, backwards T - t; of ones, the number is 2^count - 1."""
    (number, count), last = rit.Unfold(Counting(1, 1), reverse=reverse)(torch.ones(6, 3, 1, dtype=F64), all_states=True)
    counts = np.arange(1.0, 7.0)
    expected = np.broadcast_to((counts[::-1] if reverse else counts)[:, None, None], (6, 3, 1))
    assert_close(count, expected)
    assert_close(number, 2.0**expected - 1)
    assert_close(last, Counting.State(np.full((3, 1), 63.0), np.full((3, 1), 6.0)))


@given(batches(), st.booleans(), st.integers(0, 99))
def test_counting_any_batch(batch: Batch, learn_initial: bool, seed: int) -> None:
    """w steps from its segment's start s, a step has count s + w + 1 and number 2^(w+1) s + Σ 2^(w-j) x_j."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 9, (batch.time, batch.batch, 2)).astype(float)
    entering = random.integers(1, 9, (batch.batch, 3)).astype(float)
    unfold = rit.Unfold(Counting(2, 1), reverse=batch.reverse, learn_initial=learn_initial).to(F64)
    begin = np.zeros(3)
    if learn_initial:
        begin[:] = random.integers(1, 9, 3)
        for field, values in zip(unfold.initial, (begin[:2], begin[2:]), strict=True):
            nn.init.zeros_(field).data.add_(torch.tensor(values))

    number, count = np.zeros((batch.time, batch.batch, 2)), np.zeros((batch.time, batch.batch, 1))
    last = entering.copy()
    for b in range(batch.batch):
        marks = [row[b] for row in batch.resets] if batch.resets else [False] * batch.time
        for start, stop in segments(batch.length(b), marks):
            steps = np.arange(start, stop)[:: -1 if batch.reverse else 1]
            enters_here = steps[0] == (batch.length(b) - 1 if batch.reverse else 0)
            state = entering[b] if enters_here and (batch.reverse or not marks[0]) else begin
            for w, t in enumerate(steps):
                number[t, b] = 2.0 ** (w + 1) * state[:2] + 2.0 ** (w - np.arange(w + 1)) @ x[steps[: w + 1], b]
                count[t, b] = state[2] + w + 1
        if batch.length(b):
            t = 0 if batch.reverse else batch.length(b) - 1
            last[b] = *number[t, b], *count[t, b]

    found, final = unfold(
        torch.tensor(x),
        (torch.tensor(entering[:, :2]), torch.tensor(entering[:, 2:])),
        lengths=batch.lengths,
        resets=None if batch.resets is None else torch.tensor(batch.resets).bool().view(batch.time, batch.batch),
        all_states=True,
    )
    assert_close(found, Counting.State(number, count))
    assert_close(final, Counting.State(last[:, :2], last[:, 2:]))


@given(st.lists(trees(), max_size=4), st.integers(0, 99))
@example([[-1]], 0)
def test_counting_trees(batch: list[list[int]], seed: int) -> None:
    """A node adds 2^d x to the number of its ancestor at distance d, 1 to its count; a leaf, its entry state."""
    random = np.random.default_rng(seed)
    size = sum(map(len, batch))
    x, entering = random.integers(0, 9, (size, 2)).astype(float), random.integers(1, 9, (len(batch), 3)).astype(float)
    number, count, roots = np.zeros((size, 2)), np.zeros((size, 1)), []
    offset = 0
    for tree, enter in zip(batch, entering, strict=True):
        for node in range(len(tree)):
            is_leaf, ancestor, distance = node not in tree, node, 0
            while ancestor >= 0:
                number[offset + ancestor] += 2.0**distance * (x[offset + node] + 2 * is_leaf * enter[:2])
                count[offset + ancestor] += 1 + is_leaf * enter[2]
                ancestor, distance = tree[ancestor], distance + 1
        roots.append(offset + tree.index(-1))
        offset += len(tree)
    found, final = rit.Unfold(Counting(2, 1)).over(
        batch, torch.tensor(x), (torch.tensor(entering[:, :2]), torch.tensor(entering[:, 2:])), all_states=True
    )
    assert_close(found, Counting.State(number, count))
    assert_close(final, Counting.State(number[roots], count[roots]))


def test_the_output_is_the_first_field_whatever_the_sizes_of_the_others() -> None:
    unfold = rit.Unfold(Counting(2, 7))
    states, _ = unfold(torch.ones(3, 1, 2), all_states=True)
    outputs, last = unfold(torch.ones(3, 1, 2))
    assert torch.equal(outputs, states.number)
    assert torch.equal(last.count, states.count[-1])
    assert (unfold.input_size, unfold.output_size) == (2, outputs.shape[-1])


# Chains, against the naive twin.


class Call(NamedTuple):
    """One way of calling an unfolding."""

    batch: Batch
    batch_first: bool
    batched: bool
    learn_initial: bool
    give_state: bool
    all_states: bool
    seed: int


@st.composite
def calls(draw: st.DrawFn) -> Call:
    batch, flags = draw(batches()), [draw(st.booleans()) for _ in range(4)]
    if batch.time > 4 or batch.batch > 3:
        batch = Batch(min(batch.time, 4), min(batch.batch, 3), None, None, batch.reverse)
    return Call(batch, flags[0], batch.batch != 1, *flags[1:], draw(st.integers(0, 99)))


def check_chain(variant: str, executor: str, call: Call) -> None:
    """Values of every output, and gradients of x, the given and the learnt state and every parameter of the cell."""
    torch.manual_seed(call.seed)
    batch = call.batch
    options = {"reverse": batch.reverse, "batch_first": call.batch_first, "learn_initial": call.learn_initial}
    unfold = unfolding(variant, executor=executor, **options)
    resets = None if batch.resets is None else torch.tensor(batch.resets).bool().view(batch.time, batch.batch)
    beyond = padding(batch.time, batch.batch, batch.lengths)
    x = torch.randn(batch.time, batch.batch, 2, dtype=F64)
    x[beyond] = POISON
    x.requires_grad_()
    state = random_state(unfold.cell, batch.batch) if call.give_state else None

    def laid_out(value: Any) -> Any:
        if value is None or not call.batched:
            return value if value is None else value[:, 0]
        return value.transpose(0, 1) if call.batch_first else value

    def laid_back(value: Tensor) -> Tensor:
        if not call.batched:
            return value.unsqueeze(1)
        return value.transpose(0, 1) if call.batch_first else value

    given_state = state if call.batched or state is None else unfold.cell.State(*(field[0] for field in state))
    outputs, last = unfold(
        laid_out(x), given_state, lengths=batch.lengths, resets=laid_out(resets), all_states=call.all_states
    )
    outputs = tuple(map(laid_back, outputs)) if call.all_states else (laid_back(outputs),)
    last = last if call.batched else unfold.cell.State(*(field.unsqueeze(0) for field in last))
    twin, twin_last = chain_twin(unfold.cell, x, initial_state(unfold), state, batch.lengths, resets, batch.reverse)
    if not call.all_states:
        twin = twin[:1]
    assert_close(outputs, tuple(twin), "outputs")
    assert_close(last, twin_last, "last")
    assert all(not field[beyond].any() for field in outputs)

    inputs = {"x": x, **(state._asdict() if call.give_state else {}), **dict(unfold.named_parameters())}
    found = gradients((outputs, last), inputs)
    assert_close(found, gradients((twin, twin_last), inputs), "gradient")
    assert not found["x"][beyond].any()


@pytest.mark.parametrize("executor", list(EXECUTORS))
@given(call=calls())
@settings(max_examples=60)
def test_chains_equal_the_naive_loop(variant: str, executor: str, call: Call) -> None:
    check_chain(variant, executor, call)


RAGGED = [4, 0, 2, 1]
MARKS = [[True, False, False, True], [False, True, True, False], [True, False, True, True], [False, True, False, True]]


@pytest.mark.parametrize("executor", list(EXECUTORS))
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("marks", [None, MARKS], ids=["", "resets"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_chains_of_every_kind_equal_the_naive_loop(
    variant: str, executor: str, lengths: list[int] | None, marks: list[list[bool]] | None, reverse: bool
) -> None:
    """What Hypothesis may miss: all together, a learnt and a given state, and resets in the padding."""
    batch = Batch(4, 4, lengths, marks, reverse)
    check_chain(variant, executor, Call(batch, False, True, True, True, True, 0))


@pytest.mark.parametrize("executor", list(EXECUTORS))
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("length", [None, 0, 2, 3])
def test_one_sequence_equals_the_naive_loop(variant: str, executor: str, batch_first: bool, length: int | None) -> None:
    batch = Batch(3, 1, None if length is None else [length], [[False], [True], [True]], False)
    check_chain(variant, executor, Call(batch, batch_first, False, True, True, True, 0))


# Chains, against torch.nn.


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("lengths", [None, [3, 7, 1, 4]], ids=["full", "packed"])
@pytest.mark.parametrize("name", list(TORCH_LAYERS))
def test_both_directions_equal_torch_s(name: str, lengths: list[int] | None, dtype: torch.dtype) -> None:
    layer = TORCH_LAYERS[name](3, 5, bidirectional=True, dtype=dtype)
    x = torch.randn(7, 4, 3, dtype=dtype, requires_grad=True)
    unfolds = [rit.Unfold(CELLS[name](3, 5).to(dtype), reverse=reverse) for reverse in (False, True)]
    names = [
        copy_from_torch(unfold.cell, layer, suffix)
        for unfold, suffix in zip(unfolds, ("_l0", "_l0_reverse"), strict=True)
    ]
    states = [random_state(unfold.cell, 4, dtype) for unfold in unfolds]
    stacked = [torch.stack(fields) for fields in zip(*states, strict=True)]
    entering = tuple(stacked) if name == "lstm" else stacked[0]

    poisoned = x
    if lengths is None:
        expected, final = layer(x, entering)
    else:
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        expected, final = layer(packed, entering)
        expected, _ = pad_packed_sequence(expected, total_length=7)
        poisoned = x.masked_fill(padding(7, 4, lengths)[..., None], POISON)
    final = final if isinstance(final, tuple) else (final,)

    for direction, unfold in enumerate(unfolds):
        outputs, last = unfold(poisoned, states[direction], lengths=lengths)
        their_outputs, their_last = expected[..., 5 * direction :][..., :5], tuple(f[direction] for f in final)
        assert_close(outputs, their_outputs, "outputs")
        assert_close(tuple(last), their_last, "last")

        inputs = {"x": x, **states[direction]._asdict()}
        ours = gradients((outputs, tuple(last)), inputs | dict(unfold.cell.named_parameters()))
        theirs = gradients((their_outputs, their_last), inputs | names[direction])
        if "d" in theirs:
            theirs["d"] = theirs["d"][-5:]
        assert_close({key: ours[key] for key in theirs}, theirs, "gradient")


def test_a_relu_layer_equals_torch_s() -> None:
    layer = nn.RNN(3, 5, nonlinearity="relu", batch_first=True)
    unfold = rit.Unfold(rit.Elman(3, 5, nonlinearity="relu"), batch_first=True)
    copy_from_torch(unfold.cell, layer, "_l0")
    x = torch.randn(4, 7, 3)
    outputs, last = unfold(x)
    expected, final = layer(x)
    assert_close(outputs, expected)
    assert_close(last.h, final[0])


# Lengths, resets and empty batches.


def test_a_sequence_without_steps_hands_its_state_on(variant: str) -> None:
    unfold = unfolding(variant)
    x, state = torch.full((3, 2, 2), POISON, dtype=F64, requires_grad=True), random_state(unfold.cell, 2)
    outputs, last = unfold(x, state, lengths=[0, 0])
    assert_close(outputs, torch.zeros(3, 2, 3, dtype=F64))
    assert_close(last, state)
    found = gradients((outputs, last), {"x": x, **state._asdict(), **dict(unfold.named_parameters())})
    expected = gradients((outputs.detach(), state), state._asdict())
    assert_close({name: found.pop(name) for name in state._fields}, expected)
    assert not any(value.any() for value in found.values())


@pytest.mark.parametrize("learn_initial", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("time", "batch"), [(0, 2), (3, 0), (0, 0)])
def test_empty_batches(variant: str, time: int, batch: int, reverse: bool, learn_initial: bool) -> None:
    unfold = unfolding(variant, reverse=reverse, learn_initial=learn_initial)
    x, state = torch.zeros(time, batch, 2, dtype=F64, requires_grad=True), random_state(unfold.cell, batch)
    resets = torch.zeros(time, batch, dtype=torch.bool)
    for options in ({}, {"lengths": [0] * batch if not time else [], "resets": resets}):
        states, last = unfold(x, state, all_states=True, **options)
        assert [field.shape for field in states] == [(time, batch, size) for size in unfold.cell.state_sizes]
        assert_close(last, state)
        assert_close(unfold(x, **options)[1], unfold.cell.State(*(f.expand(batch, -1) for f in initial_state(unfold))))
        found = gradients((states, last), {"x": x, **dict(unfold.named_parameters())})
        assert not any(value.any() for value in found.values())


def test_an_empty_sequence_alone() -> None:
    unfold = unfolding("lstm")
    state = unfold.cell.State(torch.randn(3, dtype=F64), torch.randn(3, dtype=F64))
    outputs, last = unfold(torch.zeros(0, 2, dtype=F64), state)
    assert outputs.shape == (0, 3)
    assert_close(last, state)


@pytest.mark.parametrize("reverse", [False, True])
def test_resets_equal_segments_run_by_themselves(variant: str, reverse: bool) -> None:
    unfold = unfolding(variant, reverse=reverse, learn_initial=True)
    x, state = torch.randn(7, 1, 2, dtype=F64, requires_grad=True), random_state(unfold.cell, 1)
    resets = torch.zeros(7, 1, dtype=torch.bool)
    resets[2] = resets[3] = resets[6] = True
    parts = [x[0:2], x[2:3], x[3:6], x[6:7]]
    entering = [None, None, None, state] if reverse else [state, None, None, None]
    runs = [unfold(part, enters) for part, enters in zip(parts, entering, strict=True)]
    expected = torch.cat([outputs for outputs, _ in runs]), runs[0 if reverse else -1][1]
    inputs = {"x": x, **state._asdict(), **dict(unfold.named_parameters())}
    found = unfold(x, state, resets=resets)
    assert_close(found, expected)
    assert_close(gradients(found, inputs), gradients(expected, inputs), "gradient")


def test_a_reset_at_the_first_step_sets_the_given_state_aside() -> None:
    unfold = unfolding("gru", learn_initial=True)
    x, resets = torch.randn(3, 2, 2, dtype=F64), torch.zeros(3, 2, dtype=torch.bool)
    resets[0, 1] = True
    outputs, _ = unfold(x, random_state(unfold.cell, 2), resets=resets)
    assert_close(outputs[:, 1], unfold(x)[0][:, 1])


def test_no_state_crosses_a_reset_even_if_it_is_nan(variant: str) -> None:
    unfold = unfolding(variant)
    x, resets = torch.randn(4, 1, 2, dtype=F64), torch.tensor([[False], [False], [True], [False]])
    x[1] = POISON
    x.requires_grad_()
    outputs, last = unfold(x, resets=resets)
    assert outputs[1].isnan().all()
    assert_close((outputs[2:], last), unfold(x[2:]))
    assert_close(gradients(outputs[2:], {"x": x})["x"][2:], gradients(unfold(x[2:])[0], {"x": x})["x"][2:])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda n: torch.tensor(n, dtype=torch.uint8)])
def test_lengths_may_come_as(kind: Any) -> None:
    unfold, x = unfolding("gru"), torch.randn(4, 3, 2, dtype=F64)
    outputs, last = unfold(x, lengths=kind([2, 4, 1]))
    expected, expected_last = chain_twin(unfold.cell, x, initial_state(unfold), None, [2, 4, 1])
    assert_close(outputs, expected.h)
    assert_close(last, expected_last)


def test_full_lengths_and_no_resets_change_no_bit() -> None:
    unfold, x = unfolding("lstm"), torch.randn(4, 3, 2, dtype=F64)
    outputs, last = unfold(x)
    for options in ({"lengths": [4, 4, 4]}, {"resets": torch.zeros(4, 3, dtype=torch.bool)}):
        again, last_again = unfold(x, **options)
        assert torch.equal(outputs, again)
        assert all(map(torch.equal, last, last_again))


# Trees.


def check_trees(variant: str, executor: str, batch: list[list[int]], learn_initial: bool, give_state: bool) -> None:
    if executor == "cpu":
        pytest.skip("the cpu executor does not run over several predecessors yet")
    unfold = unfolding(variant, learn_initial=learn_initial, executor=executor)
    x = torch.randn(sum(map(len, batch)), 2, dtype=F64, requires_grad=True)
    state = random_state(unfold.cell, len(batch)) if give_state else None
    spread = unfold.cell.State(*(field.expand(len(batch), -1) for field in initial_state(unfold)))
    found = unfold.over(batch, x, state, all_states=True)
    expected = tree_twin(unfold.cell, batch, x, state if give_state else spread)
    assert_close(found, expected)
    inputs = {"x": x, **(state._asdict() if give_state else {}), **dict(unfold.named_parameters())}
    assert_close(gradients(found, inputs), gradients(expected, inputs), "gradient")
    output, roots = unfold.over(batch, x, state)
    assert torch.equal(output, found[0][0])
    assert all(map(torch.equal, roots, found[1]))


@pytest.mark.parametrize("executor", list(EXECUTORS))
@given(
    batch=st.lists(trees(), min_size=1, max_size=3),
    learn_initial=st.booleans(),
    give_state=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=30)
def test_trees_equal_the_recursive_twin(
    variant: str, executor: str, batch: list[list[int]], learn_initial: bool, give_state: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    check_trees(variant, executor, batch, learn_initial, give_state)


COMB = [-1] + [2 * ((node - 1) // 2) for node in range(1, 401)]  # each even node has a leaf and the next even node


@pytest.mark.parametrize("executor", list(EXECUTORS))
@pytest.mark.parametrize(
    "batch", [[[-1]], [[-1], [-1]], [[-1] + [0] * 20, [-1]], [COMB]], ids=["leaf", "two leaves", "star", "comb"]
)
def test_odd_trees_equal_the_recursive_twin(variant: str, executor: str, batch: list[list[int]]) -> None:
    check_trees(variant, executor, batch, True, True)


@given(batch=st.lists(graphs(), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_graphs_equal_the_recursive_twin(variant: str, batch: list[list[list[int]]], seed: int) -> None:
    torch.manual_seed(seed)
    unfold = unfolding(variant, learn_initial=True)
    x = torch.randn(sum(map(len, batch)), 2, dtype=F64, requires_grad=True)
    state = random_state(unfold.cell, len(batch))
    found = unfold.over(Graphs.from_predecessors(batch), x, state, all_states=True)
    expected = graph_twin(unfold.cell, batch, x, state)
    assert_close(found, expected)
    inputs = {"x": x, **state._asdict(), **dict(unfold.named_parameters())}
    assert_close(gradients(found, inputs), gradients(expected, inputs), "gradient")


def test_a_forest_is_its_lists_of_parents() -> None:
    unfold, lists = unfolding("lstm"), [[2, 2, -1], [-1], [1, 2, -1]]
    x = torch.randn(7, 2, dtype=F64)
    for found, expected in zip(unfold.over(Forest.from_parents(lists), x), unfold.over(lists, x), strict=True):
        assert_close(found, expected)


def test_no_trees() -> None:
    unfold = unfolding("lstm")
    nodes, roots = unfold.over([], torch.zeros(0, 2, dtype=F64), all_states=True)
    assert [field.shape for field in (*nodes, *roots)] == [(0, 3)] * 4


def test_a_chain_as_a_tree_is_the_chain(variant: str) -> None:
    unfold = unfolding(variant, learn_initial=True)
    x = torch.randn(5, 2, 2, dtype=F64, requires_grad=True)
    outputs, last = unfold(x)
    nodes, roots = unfold.over([[1, 2, 3, 4, -1]] * 2, x.transpose(0, 1).reshape(10, 2))
    found = nodes.view(2, 5, 3).transpose(0, 1), roots
    assert_close(found, (outputs, last))
    inputs = {"x": x, **dict(unfold.named_parameters())}
    assert_close(gradients(found, inputs), gradients((outputs, last), inputs), "gradient")


@given(trees(), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_children_does_not_matter(variant: str, tree: list[int], random: Any) -> None:
    unfold = unfolding(variant)
    names = list(range(len(tree)))
    random.shuffle(names)
    renamed = [0] * len(tree)
    for node, parent in enumerate(tree):
        renamed[names[node]] = -1 if parent < 0 else names[parent]
    x = torch.randn(len(tree), 2, dtype=F64)
    nodes, root = unfold.over([tree], x)
    moved = torch.empty_like(x)
    moved[names] = x
    nodes_again, root_again = unfold.over([renamed], moved)
    assert_close(nodes_again[names], nodes)
    assert_close(root_again, root)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ChainOnly, r"^ChainOnly is a cell for chains: its state 'h' keeps 3 predecessors apart; .*ritornello\.total"),
        (
            ChainOnlyConcatenated,
            r"^ChainOnlyConcatenated cannot run over 3 predecessors \(Sizes of tensors must match.*ritornello\.total",
        ),
        (
            nn.LSTMCell,
            r"^LSTMCell cannot run over 3 predecessors \(LSTMCell: Expected input to be 1D or 2D.*ritornello\.",
        ),
    ],
)
def test_a_cell_for_chains_does_not_run_over_trees(kind: type[nn.Module], message: str) -> None:
    unfold = rit.Unfold(kind(2, 4))
    with pytest.raises(CellError, match=message):
        unfold.over([[3, 3, 3, -1]], torch.randn(4, 2))
    x = torch.randn(4, 2)
    chain, _ = unfold(x)
    assert_close(unfold.over([[1, 2, 3, -1]], x)[0], chain.double())  # where no node has two children it may


def test_running_out_of_memory_on_a_tree_is_told_as_it_is() -> None:
    class Hungry(ChainOnly):
        def forward(self, x: Tensor, s: Any) -> Any:
            if s.h.dim() == 3:
                raise torch.OutOfMemoryError("no memory left")
            return super().forward(x, s)

    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        rit.Unfold(Hungry(2, 4)).over([[2, 2, -1]], torch.randn(3, 2))


# Cells that break their promise.


class Broken(Cell):
    """Returns what it is told to."""

    State = namedtuple("State", "h c")
    Swapped = namedtuple("Swapped", "c h")

    def __init__(self, answer: Any) -> None:
        super().__init__(3, 4)
        self.answer = answer

    def forward(self, x: Tensor, s: Any) -> Any:
        return self.answer(s)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda s: None, r"^Broken\.forward returned nothing; return self\.State\(h, c\)\.$"),
        (lambda s: s.h, r"^Broken\.forward returned Tensor\(\); return self\.State\(h, c\)"),
        (lambda s: tuple(s), r"^Broken\.forward returned tuple\(\); return self\.State\(h, c\)"),
        (lambda s: Broken.Swapped(s.c, s.h), r"^Broken\.forward returned Swapped\(c, h\); return self\.State\(h, c\)"),
        (
            lambda s: s._replace(c=s.c[:, :3]),
            r"^Broken\.forward returned 'c' of shape \(2, 3\); expected \(2, 4\), as Broken\.state_sizes says\.$",
        ),
        (lambda s: s._replace(h=s.h[:1]), r"returned 'h' of shape \(1, 4\); expected \(2, 4\)"),
        (lambda s: s._replace(h=s.h[0]), r"returned 'h' of shape \(4,\); expected \(2, 4\)"),
        (lambda s: s._replace(c=None), r"returned 'c' as NoneType; expected a tensor of shape \(2, 4\)"),
    ],
)
def test_a_cell_must_return_its_state(answer: Any, message: str) -> None:
    unfold = rit.Unfold(Broken(answer))
    with pytest.raises(CellError, match=message):
        unfold(torch.zeros(5, 2, 3))
    with pytest.raises(CellError, match=message):
        unfold.over([[-1], [-1]], torch.zeros(2, 3))


def test_over_a_tree_the_message_has_the_shapes_there() -> None:
    cell = Broken(lambda s: Broken.State(total(s.h), total(s.c)[..., : 2 if s.c.dim() == 3 else 4]))
    unfold = rit.Unfold(cell, executor="reference")
    with pytest.raises(CellError, match=r"returned 'c' of shape \(1, 1, 2\); expected \(1, 1, 4\)"):
        unfold.over([[2, 2, -1]], torch.zeros(3, 3), (torch.zeros(1, 4), torch.zeros(1, 4)))


# Learnt states.


@pytest.mark.parametrize("executor", ["cpu", "reference"])
def test_what_is_the_cell_s_alone_is_not_learnt(executor: str) -> None:
    clocked = rit.Unfold(rit.cells.GroupedRNN(3, 8), learn_initial=True, executor=executor)
    assert [tuple(field.shape) for field in clocked.initial] == [(1, 8)]
    assert clocked(torch.randn(9, 2, 3))[1].clock.tolist() == [[0, 1, 3, 7]] * 2
    unfold = rit.Unfold(rit.cells.SLSTM(3, 8), learn_initial=True, executor=executor)
    with torch.no_grad():
        unfold.initial[0].fill_(0.5)
    x = torch.randn(5, 2, 3)
    zero = torch.zeros(2, 8)
    assert_close(unfold(x), unfold(x, (torch.full((2, 8), 0.5), zero, zero, zero)))
    (gradient,) = torch.autograd.grad(unfold(x)[0].sum(), unfold.initial)
    assert gradient.any()


# The door.

ZEROS, X = torch.zeros(2, 4), torch.zeros(5, 2, 3)
NESTED = torch.nested.nested_tensor([torch.zeros(5, 3), torch.zeros(2, 3)], layout=torch.jagged)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1.0]],), {}, r"^x must be a tensor of shape \(time, batch, features\), not list\.$"),
        (
            (torch.zeros(3),),
            {},
            r"^x has shape \(3,\); expected \(time, batch, features\), or \(time, features\) for one sequence",
        ),
        ((torch.zeros(1, 5, 2, 3),), {}, r"^x has shape \(1, 5, 2, 3\); expected \(time"),
        ((torch.zeros(5, 2, 4),), {}, r"^x has 4 features; LSTM was made with input_size=3"),
        ((torch.zeros(5, 4),), {}, r"^x has 4 features; LSTM was made with input_size=3"),
        ((X.int(),), {}, r"^x has dtype torch\.int32; expected a floating-point dtype, such as torch\.float32"),
        ((torch.zeros(5, 2, dtype=torch.long),), {}, "^x has dtype torch.int64; .*vectors by torch.nn.Embedding"),
        ((X.to(torch.complex64),), {}, r"^x has dtype torch\.complex64"),
        ((X.to_sparse(),), {}, r"^x has layout torch\.sparse_coo; expected a dense tensor: x\.to_dense\(\) makes one"),
        (
            (NESTED,),
            {},
            r"^x has layout torch\.jagged; expected a dense tensor: rit\.nn\.RNN\(\.\.\., cell=\.\.\.\) takes",
        ),
        ((X,), {"lengths": [1.0, 2.0]}, r"^lengths must be integers, not torch\.float32"),
        ((X,), {"lengths": torch.tensor([True, False])}, r"^lengths must be integers, not torch\.bool"),
        ((X,), {"lengths": [5, -1]}, r"^lengths holds -1; each must lie between 0 and the 5 steps of x"),
        ((X,), {"lengths": [6, 5]}, r"^lengths holds 6; each must lie between 0 and the 5 steps of x"),
        ((X,), {"lengths": [5]}, r"^lengths has shape \(1,\); expected \(2,\), one for each sequence"),
        ((X,), {"lengths": []}, r"^lengths has shape \(0,\); expected \(2,\)"),
        ((X,), {"lengths": 3}, r"^lengths has shape \(\); expected \(2,\)"),
        ((X[:, 0],), {"lengths": [3, 3]}, r"^lengths has shape \(2,\); expected \(1,\)"),
        ((X,), {"resets": torch.zeros(5, 2)}, r"^resets must be booleans, not torch\.float32"),
        (
            (X,),
            {"resets": torch.zeros(2, 5, dtype=torch.bool)},
            r"^resets has shape \(2, 5\); expected \(5, 2\), one for each step of x",
        ),
        ((X[:, 0],), {"resets": torch.zeros(5, 1, dtype=torch.bool)}, r"^resets has shape \(5, 1\); expected \(5,\)"),
        ((X, (ZEROS,)), {}, r"^state has 1 fields; LSTM\.State has 2: h, c \(missing: c\)\.$"),
        ((X, ZEROS), {}, r"^state has 1 fields; LSTM\.State has 2: h, c"),
        ((X, (ZEROS,) * 3), {}, r"^state has 3 fields; LSTM\.State has 2: h, c \(not among them: number 3\)\.$"),
        ((X, {"h": ZEROS}), {}, r"^state has the fields h; LSTM\.State has h, c \(missing: c\)\.$"),
        (
            (X, {"h": ZEROS, "c": ZEROS, "z": ZEROS}),
            {},
            r"^state has the fields h, c, z; LSTM\.State has h, c \(not among them: z\)\.$",
        ),
        (
            (X, namedtuple("Other", "h memory")(ZEROS, ZEROS)),
            {},
            r"^state has the fields h, memory; LSTM\.State has h, c \(missing: c; not among them: memory\)\.$",
        ),
        ((X, [ZEROS, ZEROS]), {}, r"^state has list; LSTM\.State has 2: h, c"),
        ((X, [5, 2]), {}, r"^state has list; .* h, c \(numbers of steps are given by name, lengths=\.\.\.\)\.$"),
        ((X, Broken.Swapped(ZEROS, ZEROS)), {}, r"^state has the fields c, h; LSTM\.State has h, c"),
        ((X, (ZEROS, None)), {}, r"^state field 'c' must be a tensor of shape \(2, 4\), not NoneType"),
        ((X, (ZEROS, ZEROS[:1])), {}, r"^state field 'c' has shape \(1, 4\); expected \(2, 4\)"),
        (
            (X, (ZEROS[None], ZEROS)),
            {},
            r"^state field 'h' has shape \(1, 2, 4\); expected \(2, 4\): leave out torch's",
        ),
        ((X[:, 0], (ZEROS[:1], ZEROS[:1])), {}, r"^state field 'h' has shape \(1, 4\); expected \(4,\)"),
        (
            (X, (ZEROS, ZEROS.double())),
            {},
            r"^state field 'c' is torch\.float64 on cpu; x is torch\.float32 on cpu: make them alike",
        ),
        ((X, (ZEROS, ZEROS.to("meta"))), {}, r"^state field 'c' is torch\.float32 on meta; x is torch\.float32 on cpu"),
    ],
)
def test_what_does_not_fit_is_named(arguments: tuple, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        rit.Unfold(rit.LSTM(3, 4))(*arguments, **options)


def test_a_state_may_be_a_dict() -> None:
    unfold, x = rit.Unfold(rit.LSTM(3, 4)), torch.randn(5, 2, 3)
    h, c = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(unfold(x, {"c": c, "h": h})[0], unfold(x, (h, c))[0])


def test_batch_first_is_named_in_the_messages() -> None:
    unfold = rit.Unfold(rit.LSTM(3, 4), batch_first=True)
    with pytest.raises(ArgumentError, match=r"expected \(batch, time, features\), or"):
        unfold(torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"^resets has shape \(2, 5\); expected \(5, 2\)"):
        unfold(X, resets=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ArgumentError, match=r"^lengths holds 3; each must lie between 0 and the 2 steps"):
        unfold(X, lengths=[3] * 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[-1]], [[1.0]]), r"^x must be a tensor of shape \(1, 3\), not list"),
        (([[-1]], torch.zeros(2, 3)), r"^x has shape \(2, 3\); expected \(1, 3\): a row for each of the 1 nodes"),
        (([[-1]], torch.zeros(1, 1, 3)), r"^x has shape \(1, 1, 3\); expected \(1, 3\)"),
        (([[-1]], torch.zeros(1, 3, dtype=torch.long)), r"^x has dtype torch\.int64; expected a floating-point dtype"),
        (([[0]], torch.zeros(1, 3)), r"^Tree 0 has 0 roots"),
        (([[-1]], torch.zeros(1, 3), (ZEROS, ZEROS)), r"^state field 'h' has shape \(2, 4\); expected \(1, 4\)"),
    ],
)
def test_what_does_not_fit_a_tree_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        rit.Unfold(rit.LSTM(3, 4)).over(*arguments)


def test_what_cannot_be_unfolded_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^Unfold takes a ritornello\.Cell or a module like one, not str"):
        rit.Unfold("lstm")
    with pytest.raises(
        ArgumentError, match=r"^Unknown executor 'referense': did you mean reference\? Known: auto, cpu, reference"
    ):
        rit.Unfold(rit.LSTM(3, 4), executor="referense")


def test_an_executor_is_honoured_or_raises_and_auto_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky:
        name = "picky"

        def supports(self, request: executors.Request) -> str | None:
            return "it is Monday"

        def run(self, request: executors.Request) -> executors.Result:
            raise AssertionError("it said that it cannot")

    monkeypatch.setattr(executors, "EXECUTORS", {"picky": Picky(), **EXECUTORS})
    torch.manual_seed(0)
    named, free = (rit.Unfold(Counting(3, 1), executor=name) for name in ("picky", "auto"))
    with pytest.raises(ArgumentError, match=r"^Executor 'picky' cannot run this: it is Monday; use executor='auto'"):
        named(X)
    assert_close(free(X, all_states=True)[0].count[:, 0, 0], np.arange(1.0, 6.0))


def test_repr_names_the_options() -> None:
    assert "reverse" not in repr(rit.Unfold(rit.GRU(3, 4)))
    text = repr(rit.Unfold(rit.GRU(3, 4), reverse=True, batch_first=True, learn_initial=True))
    assert "reverse=True, batch_first=True, learn_initial=True" in text


# In the company of torch's other machinery.


def test_autocast_computes_in_bfloat16_and_carries_float32(variant: str) -> None:
    unfold = rit.Unfold(CORE[variant](8, 16))
    x, lengths = torch.randn(6, 3, 8), [6, 2, 4]
    expected = unfold(x, lengths=lengths, all_states=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = unfold(x, lengths=lengths, all_states=True)
        over = unfold.over([[2, 2, -1]], x[0])
    assert {field.dtype for state in found for field in state} == {torch.float32}
    assert_close([[field.bfloat16() for field in state] for state in found], [list(state) for state in expected])
    assert not torch.equal(found[0][0], expected[0][0])
    assert_close(over[0].bfloat16(), unfold.over([[2, 2, -1]], x[0])[0])
    sum(field.sum() for field in found[0]).backward()
    assert all(parameter.grad.isfinite().all() for parameter in unfold.parameters())


@pytest.mark.parametrize("reverse", [False, True])
def test_per_sample_gradients_by_vmap(variant: str, reverse: bool) -> None:
    unfold = unfolding(variant, reverse=reverse, learn_initial=True)
    parameters, x = dict(unfold.named_parameters()), torch.randn(3, 4, 2, dtype=F64)
    options = {"lengths": [3], "resets": torch.tensor([False, False, True, False])}

    def loss(parameters: dict[str, Tensor], sequence: Tensor) -> Tensor:
        outputs, last = functional_call(unfold, parameters, (sequence,), options)
        return (outputs**2).sum() + last[-1].sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    leaves = list(parameters.values())
    by_hand = [torch.autograd.grad(loss(parameters, sequence), leaves) for sequence in x]
    expected = {name: torch.stack(values) for name, values in zip(parameters, zip(*by_hand, strict=True), strict=True)}
    assert_close(found, expected)


def test_vmap_over_trees(variant: str) -> None:
    unfold, x = unfolding(variant), torch.randn(3, 4, 2, dtype=F64)
    found = vmap(lambda nodes: unfold.over([[2, 2, 3, -1]], nodes)[0])(x)
    assert_close(found, torch.stack([unfold.over([[2, 2, 3, -1]], nodes)[0] for nodes in x]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it
def test_forward_and_reverse_mode_agree(variant: str) -> None:
    unfold, x = unfolding(variant), torch.randn(3, 2, 2, dtype=F64)
    resets = torch.tensor([[False, False], [False, True], [False, False]])

    def run(x: Tensor) -> Tensor:
        return unfold(x, lengths=[2, 3], resets=resets)[0]

    assert_close(jacfwd(run)(x), jacrev(run)(x))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_evaluating_first_does_not_harm_training(mode: Any) -> None:
    """Schedules of a size are kept; one made in inference mode must serve training too."""
    unfold = unfolding("gru", reverse=True)
    x = torch.randn(11, 3, 2, dtype=F64, requires_grad=True)
    with mode():
        before, _ = unfold(x)
    after, _ = unfold(x)
    assert_close(after, before)
    assert_close(
        gradients(after, {"x": x}),
        gradients(chain_twin(unfold.cell, x, initial_state(unfold), reverse=True)[0].h, {"x": x}),
    )


def test_another_default_device_changes_nothing() -> None:
    unfold, x = unfolding("lstm", reverse=True), torch.randn(4, 3, 2, dtype=F64)
    resets = torch.tensor([[False, True, False]] * 4)
    options = [{}, {"lengths": [2, 4, 0]}, {"resets": resets}, {"lengths": [2, 4, 0], "resets": resets}]
    for chosen in options:
        expected = unfold(x, **chosen)
        with torch.device("meta"):
            found = unfold(x, **chosen)
        assert_close(found, expected)
    ahead = rit.Unfold(unfold.cell)
    with torch.device("meta"):
        found = ahead.over([[2, 2, -1]], x[0])
    assert_close(found, ahead.over([[2, 2, -1]], x[0]))


DEVICES = [
    "meta",  # no values, but shapes, and errors where a tensor is left behind
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reverse", [False, True])
def test_another_device(variant: str, reverse: bool, device: str) -> None:
    here = unfolding(variant, reverse=reverse, learn_initial=True)
    there = copy.deepcopy(here).to(device)
    x, resets = torch.randn(4, 3, 2, dtype=F64), torch.tensor([[False, True, False]] * 4)
    options: list[dict[str, Any]] = [{}, {"lengths": [2, 4, 0]}, {"lengths": [2, 4, 0], "resets": resets}]
    calls = [lambda unfold, x, chosen=chosen: unfold(x, **chosen) for chosen in options]
    if not reverse:
        calls.append(lambda unfold, x: unfold.over([[2, 2, -1], [-1]], x[:, 0]))
    for call in calls:
        (outputs, last), (expected, expected_last) = call(there, x.to(device)), call(here, x)
        found, wanted = [outputs, *last], [expected, *expected_last]
        assert {field.device.type for field in found} == {device}
        assert [field.shape for field in found] == [field.shape for field in wanted]
        if device != "meta":
            assert_close([field.cpu() for field in found], wanted)


def test_a_copy_is_alike_and_by_itself(variant: str) -> None:
    unfold, x = unfolding(variant, learn_initial=True, reverse=True, batch_first=True), torch.randn(3, 4, 2, dtype=F64)
    twin = copy.deepcopy(unfold)
    expected = unfold(x)[0].detach()
    assert torch.equal(twin(x)[0], expected)
    with torch.no_grad():
        for parameter in unfold.parameters():
            parameter.zero_()
    assert torch.equal(twin(x)[0], expected)
    assert not torch.equal(unfold(x)[0], expected)


def test_a_state_dict_round_trips(variant: str) -> None:
    unfold, other = unfolding(variant, learn_initial=True), unfolding(variant, learn_initial=True)
    x = torch.randn(4, 3, 2, dtype=F64)
    assert not torch.equal(other(x)[0], unfold(x)[0])
    saved = unfold.state_dict()
    initial = [f"initial.{number}" for number in range(len(unfold.cell.State._fields))]
    assert sorted(saved) == sorted([*(f"cell.{name}" for name in unfold.cell.state_dict()), *initial])
    other.load_state_dict(saved)
    assert torch.equal(other(x)[0], unfold(x)[0])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*initial\.0"):
        unfolding(variant).load_state_dict(saved)


def test_reverse_is_for_chains():
    with pytest.raises(ArgumentError, match="leaves to roots only"):
        rit.Unfold(rit.GRU(3, 4), reverse=True).over([[-1]], torch.zeros(1, 3))


def test_dtype_of_x_and_parameters_must_fit():
    with pytest.raises(ArgumentError, match=r"x has dtype torch.float64 and the parameters of GRU torch.float32"):
        rit.Unfold(rit.GRU(3, 4))(torch.zeros(2, 1, 3, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="x is on meta and the parameters of GRU on cpu"):
        rit.Unfold(rit.GRU(3, 4))(torch.zeros(2, 1, 3, device="meta"))


def test_autocast_takes_bfloat16_input_and_keeps_a_float32_state():
    unfold = rit.Unfold(rit.LSTM(3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        _, last = unfold(torch.randn(2, 1, 3).bfloat16())
        _, last = unfold(torch.randn(2, 1, 3).bfloat16(), last)
    assert last.c.dtype == torch.float32


def test_lengths_that_are_no_numbers():
    with pytest.raises(ArgumentError, match="lengths must be integers, one for each sequence, not 'abc'"):
        rit.Unfold(rit.GRU(3, 4))(torch.zeros(2, 1, 3), lengths="abc")
